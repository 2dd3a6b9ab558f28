"""A fine-tuning run from its first check to the folder it leaves."""

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from dsv4.api.tokenizer import load_tokenizer
from dsv4.checkpoint.adapter import adaptable, write_adapter
from dsv4.checkpoint.names import LAYOUTS, RELEASE, Layout
from dsv4.cli.folders import model_folder
from dsv4.cli.progress import console
from dsv4.cli.run_flags import RunFlags
from dsv4.cli.train import follow, show_run, start_mesh
from dsv4.cli.train_export import export_model
from dsv4.cli.train_start import before_the_run, reading
from dsv4.distributed.mesh import Mesh, launched
from dsv4.distributed.ranks import Ranks
from dsv4.encoding import Tokenizer
from dsv4.model.layers import BF16, FP32
from dsv4.model.lora import adapters_of
from dsv4.posttraining.base_model import BaseModel
from dsv4.posttraining.lora import adapted, target_layers
from dsv4.posttraining.sft import DataSize, SftWishes, held_out_loss, with_schedule, with_wishes
from dsv4.training.checks import StorageNeeds, check_codec, check_model, check_room, needs_of, remarks
from dsv4.training.data import open_sources
from dsv4.training.documents import Source, TokenShard, shard_of
from dsv4.training.recipe import Recipe
from dsv4.training.settings import SourceSettings
from dsv4.training.trainer import Trainer


def fine_tune(raw: Mapping[str, Any], init: Path | None, wishes: SftWishes, run: RunFlags) -> None:
    """Train on the model in `init`, or where the recipe says, and export it. raw: the tables of a recipe, as far as one
    says them."""
    where = init or raw.get("init")
    if not isinstance(where, str | Path):
        raise ValueError("--init: which model to start from? `dsv4 train` trains one from scratch")
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    base = BaseModel.open(model_folder(where)).changed(raw.get("model", {}))
    for note in base.notes:
        console().print(f"note: {note}")
    adapters = "lora" in raw or wishes.lora is not None
    if launched() and (adapters or run.held_out is not None):
        flag = "--lora: adapters are trained" if adapters else "--held-out: the loss is measured"
        raise ValueError(f"{flag} in one process: start it without torchrun")
    if adapters and raw.get("model"):
        raise ValueError("model: with LoRA the base stays as it is")
    if run.export not in ("auto", "none") and adapters:
        raise ValueError("--export: with LoRA the run writes an adapter; `dsv4 convert --adapter` writes a model")
    layout = None if run.export == "none" else LAYOUTS.get(run.export, base.layout)
    tokenizer = _tokenizer(base)
    made = with_wishes(raw, wishes, base, layout)
    place = run.folder or Path("runs") / str(made["name"])
    base.check_apart(place)
    # all but the schedule is judged before the data is read; a schedule for little data stands in for it
    draft = Recipe.from_dict(with_schedule(made, wishes, base, DataSize((64,))))
    _check_tokenizer(draft, tokenizer, base)
    mesh = start_mesh(draft)
    first = mesh is None or not mesh.rank
    with ExitStack() as held:
        page = before_the_run(draft, place, run.live, run.track, held) if first else None
        shards = _read(draft, tokenizer, place)
        recipe = Recipe.from_dict(with_schedule(made, wishes, base, DataSize.of(shards)))
        check_codec(recipe, tokenizer)
        _check_size(recipe, base, place, layout)
        if first:
            _tell(recipe, shards)
        watched = _held_out(run.held_out, tokenizer, place)
        trainer = _trainer(recipe, base, tokenizer, place, mesh)
        _tell_loss("before", trainer, watched, layout)
        finished = show_run(trainer, place, page, run.track, run.steps) if first else follow(trainer, run.steps)
        if finished and first:
            _tell_loss("after", trainer, watched, layout)
            if layout is not None:
                _export(trainer, base, tokenizer, place, layout)
        if mesh is not None:
            mesh.wait()
            mesh.close()


def _tokenizer(base: BaseModel) -> Tokenizer:
    found = load_tokenizer(base.folder, base.config.vocab_size)
    if found is None:
        raise ValueError(f"{base.folder}: has no tokenizer.json, so conversations cannot be read for it")
    return found


def _check_tokenizer(recipe: Recipe, tokenizer: Tokenizer, base: BaseModel) -> None:
    """Raise ValueError for a recipe whose tokenizer is not the model's."""
    named = Path(recipe.data.tokenizer or base.folder).expanduser()
    if named != base.folder and Tokenizer.load(named).definition_json() != tokenizer.definition_json():
        raise ValueError(f"data.tokenizer: {named} has other tokens than the model in {base.folder}")


def _read(recipe: Recipe, tokenizer: Tokenizer, place: Path) -> list[TokenShard]:
    """The data of all sources that have an end."""
    sources = [source for source in recipe.data.sources if source.kind != "generator"]
    with reading() as progress:
        return [shard_of(source, tokenizer, place / "data", progress) for source in sources]


def _trainer(recipe: Recipe, base: BaseModel, tokenizer: Tokenizer, place: Path, mesh: Mesh | None) -> Trainer:
    with reading() as progress:
        sources = open_sources(recipe, tokenizer, place / "data", progress)
    if mesh is not None:
        return _trainer_of_ranks(recipe, base, tokenizer, place, sources, mesh)
    stored = recipe.run.numerics == "bf16"
    if recipe.lora is not None:
        model = adapted(base, recipe.lora, recipe.seed, stored=stored)
    else:
        model = base.trainable(BF16 if stored else FP32)
    return Trainer(recipe, place, tokenizer, sources, model=model, base=base.digest)


def _trainer_of_ranks(
    recipe: Recipe, base: BaseModel, tokenizer: Tokenizer, place: Path, sources: list[Source], mesh: Mesh
) -> Trainer:
    """The run's part on this rank: each fills a whole model with the base's weights and keeps its share."""
    if mesh.rank == 0:
        mesh.wait()
    if tokenizer.vocab_size != base.config.vocab_size:
        raise ValueError(
            f"{base.folder}: config.json has a vocabulary of {base.config.vocab_size} and the tokenizer of "
            f"{tokenizer.vocab_size}; under torchrun they must be the same"
        )
    return Trainer(recipe, place, tokenizer, sources, team=Ranks(mesh), fill=base.fill, base=base.digest)


def _check_size(recipe: Recipe, base: BaseModel, place: Path, layout: Layout | None) -> None:
    """Raise ValueError for a run that memory or disk cannot hold, or a layout that cannot hold the model."""
    if recipe.lora is None:
        check_model(recipe, base.config.vocab_size, layout)
        check_room(place, needs_of(recipe, base.config, layout))
        return
    linears = adaptable(base.config)
    shapes = [linears[layer].shape for layer in target_layers(base.config, recipe.lora.targets)]
    sizes, most = [sum(shape) for shape in shapes], max(min(shape) for shape in shapes)
    if recipe.lora.rank > most:
        raise ValueError(f"lora.rank must be at most {most}, the size of the layers it lies on, got {recipe.lora.rank}")
    weights = 4 * recipe.lora.rank * sum(sizes)
    check_room(place, StorageNeeds(state=3 * weights, memory=4 * weights, model=weights))


def _export(trainer: Trainer, base: BaseModel, tokenizer: Tokenizer, place: Path, layout: Layout) -> None:
    """What the run leaves: a model in a layout, or an adapter."""
    recipe, out = trainer.recipe, console()
    if recipe.lora is None:
        files = _with_dialect(base.files(), tokenizer)
        target = export_model(place, trainer.model.config, trainer.weights(), layout, files)
        out.print(f"model: {target} ({layout.name})", soft_wrap=True)
        return
    target = place / "adapter"
    write_adapter(target, adapters_of(trainer.model), str(base.folder), recipe.lora.alpha)
    # commands to copy: rich would break them where a line ends
    folder, adapter = shlex.quote(str(base.folder)), shlex.quote(str(target))
    out.print(f"adapter: {target}; use it: dsv4 chat {folder} --adapter {adapter}", soft_wrap=True)
    merged = shlex.quote(str(place / "model"))
    kept = f" --dtype {base.layout.name}" if base.layout.name in ("base", "bf16", "fp32") else ""
    out.print(f"merge it: dsv4 convert {folder} {merged} --adapter {adapter}{kept}", soft_wrap=True)


def _held_out(file: Path | None, tokenizer: Tokenizer, place: Path) -> TokenShard | None:
    if file is None:
        return None
    return shard_of(SourceSettings("held-out", "messages", str(file)), tokenizer, place / "data")


def _tell(recipe: Recipe, shards: Sequence[TokenShard]) -> None:
    out = console()
    sources = [source for source in recipe.data.sources if source.kind != "generator"]
    for settings, shard in zip(sources, shards, strict=True):
        text = f"{settings.name}: {shard.count:,} examples, {shard.tokens:,} tokens, {shard.learned:,} of them learned"
        if shard.context_only:
            text += f"; {shard.context_only:,} answers are only context: no reasoning in a conversation that thinks"
        out.print(text)
    for remark in remarks(recipe):
        out.print(f"note: {remark}")


def _tell_loss(when: str, trainer: Trainer, shard: TokenShard | None, layout: Layout | None) -> None:
    if shard is None or (when == "before" and trainer.step):
        return
    quantised = layout is RELEASE and trainer.recipe.lora is None
    loss, right = held_out_loss(trainer.model, shard, micro=trainer.recipe.data.micro, quantised=quantised)
    console().print(f"held out, {when}: loss {loss:.3f}, {right:.1%} of {shard.learned:,} tokens right")


def _with_dialect(files: Mapping[str, bytes], tokenizer: Tokenizer) -> dict[str, bytes]:
    """The base's files, its dialect said in words: the encoding script that told it is not copied."""
    name = "generation_config.json"
    raw = json.loads(files.get(name, b"{}")) | {"dialect": tokenizer.dialect.name}
    return {**files, name: json.dumps(raw, indent=2).encode()}
