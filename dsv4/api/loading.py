"""`dsv4.load`: loads a checkpoint folder as a `LocalModel`."""

import hashlib
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from dsv4.api.folders import model_folder
from dsv4.api.local_model import LocalModel
from dsv4.api.placing import settle
from dsv4.api.tokenizer import load_tokenizer
from dsv4.cache import CacheDtype
from dsv4.cache.disk import DiskTier
from dsv4.cache.prefix import ReusePolicy
from dsv4.checkpoint import CheckpointReader, load_into, open_folder
from dsv4.checkpoint.adapter import Adapter, read_adapter
from dsv4.config import DraftChoice, Mode, ModeChoice, ModelConfig, NumaChoice
from dsv4.config.device import check_threads
from dsv4.config.drafts import drafting
from dsv4.config.generation_file import read_generation
from dsv4.config.modes import check_choice
from dsv4.config.numa import check_numa
from dsv4.config.ranges import number
from dsv4.encoding import Tokenizer
from dsv4.engine import Engine
from dsv4.files import stamp, unusable
from dsv4.generation import SamplingDefaults
from dsv4.hub import title
from dsv4.kernels import native
from dsv4.kernels.moe.residency import ExpertBudget
from dsv4.kernels.native.places import ThreadPlaces
from dsv4.model.device import choose_device, describe_device, free_card_memory
from dsv4.model.layers import MODES, walk
from dsv4.model.lora import attach_adapter, merge_adapters
from dsv4.model.transformer import Transformer
from dsv4.planning.files import ModelFiles
from dsv4.planning.memory import ALL, check_budget, parse_memory
from dsv4.planning.placement import place
from dsv4.planning.plan import EnginePlan, EngineRequest, make_plan
from dsv4.planning.rates import measure
from dsv4.planning.text import short_lines
from dsv4.planning.topology import read_topology

MOST = 2**31  # requests or tokens, far above what a memory holds
LEAST_DISK, MOST_DISK = 2**20, 2**63 - 1  # bytes of kept prefixes
PROBED = 2**30  # bytes of weights from which a measurement of the machine is worth its second


def load(
    folder: str | Path | None = None,
    mode: ModeChoice = "auto",
    *,
    context_length: int | None = None,
    memory: int | str | None = None,
    expert_memory: int | str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    numa: NumaChoice = "auto",
    sequences: int = 8,
    cache_dtype: CacheDtype | None = None,
    reuse: ReusePolicy | None = None,
    prefix_folder: Path | None = None,
    prefix_bytes: int = 8 * 2**30,
    draft: DraftChoice = "auto",
    speculate: bool = False,
    queue: int = 1024,
    step_tokens: int = 512,
    slowdown: float | None = None,
    dialect: str | None = None,
    fused: bool | None = None,
    adapter: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> LocalModel:
    """Load a checkpoint folder (released layout, Base layout or plain floats) or a pulled model by its name (`flash`,
    `owner/name`); None = the bundled model.

    mode, context_length, memory, expert_memory, cache_dtype: as in dsv4.planning.plan.EngineRequest; sizes are bytes or
    texts like "8GiB" and "50%". device: "cpu", "cuda" (a card; not run on one yet), "cuda:N", or "auto" (a card where
    there is one). threads: of torch, in this process, at most 4,096. numa: "auto", "interleave" or "off", as in
    dsv4.planning.placement. prefix_folder: where prefixes are kept after the process ends, at most prefix_bytes.
    dialect: of the prompts: v4, v4-0731 or v4.1; default: that of the folder. draft: how tokens are drafted, which
    changes no text: "ngram" looks them up in the prompt and the answer so far, "head" has them from the folder's
    prediction block or draft head, which is loaded for this only, "both" looks them up first, "none" drafts none,
    "auto" is "ngram" on a CPU with the native kernels and all experts in memory, else "none". speculate: True is
    draft="head". adapter: folder of a LoRA adapter; beside quantised weights its steps run op by op. say: is called
    with the lines of the plan before anything is allocated. The others are those of dsv4.engine.Engine. Raises
    ValueError or FileNotFoundError naming the wrong file, tensor or field, or where the memory is too small.
    """
    _begin(mode, numa, threads, slowdown, fused, speculate, sequences=sequences, queue=queue, step_tokens=step_tokens)
    _check_reuse(reuse, prefix_folder, prefix_bytes)
    path, reuse, place = model_folder(folder), reuse or ReusePolicy(), choose_device(device)
    head, lookup = _drafting(draft, speculate, place)
    config, reader, defaults = _open(path, draft=head)
    tokenizer = load_tokenizer(path, config.vocab_size, dialect)
    free = None if place.type == "cpu" else free_card_memory(place)
    sizes = _budget(memory, free), _limit(expert_memory), sequences, reuse.snapshots, cache_dtype
    request = EngineRequest(
        mode, context_length, *sizes, step_tokens, head, lookup, str(place), lookup_streamed=draft != "auto"
    )
    plan = plan_folder(title(path), config, reader, request, say, free)
    model, adapted = _model(config, reader, plan.mode, _adapter(adapter, config), place)
    budget, places = _limit_experts(model, reader, plan.expert_memory), _settled(model, plan, numa, say)
    settings = plan.mode, plan.cache_dtype, reuse.windows, head, plan.lookup, adapted, describe_device(place)
    disk = _disk_tier(prefix_folder, prefix_bytes, _fingerprint(path, *settings))
    steps = {"step_tokens": step_tokens, "slowdown": slowdown, "queue": queue, "fused": fused, "places": places}
    engine = _engine(model, plan, reuse, disk, tokenizer, steps | {"speculate": head, "lookup": plan.lookup})
    return LocalModel(title(path), model, engine, tokenizer, defaults, plan, budget)


def plan_folder(
    name: str,
    config: ModelConfig,
    reader: CheckpointReader,
    request: EngineRequest,
    say: Callable[[str], None] | None,
    free: int | None = None,
) -> EnginePlan:
    """The plan of a folder, told in a few lines. The machine is measured only for models that take long to load. free:
    of the card that the request names."""
    files = ModelFiles.of_folder(name, config, reader)
    plan = make_plan(files, request, free)
    if say is not None:
        rates = measure(files.largest, plan.free) if plan.stored >= PROBED and not request.on_card else None
        for line in short_lines(plan, rates):
            say(line)
    return plan


def _model(
    config: ModelConfig, reader: CheckpointReader, mode: Mode, added: Adapter | None, place: torch.device
) -> tuple[Transformer, str | None]:
    """The folder's model on a device, with an adapter on it; the adapter's digest."""
    with torch.device("meta"):
        # tables of experts lie in the files, which a card cannot read
        model = Transformer(config, MODES[mode], stored_experts=added is None and place.type == "cpu")
    load_into(model, config, reader, mode)
    if added is not None:
        for layer in added.factors:
            attach_adapter(model, layer, added.layer(layer))
        merge_adapters(model)
    for _, module in walk(model):
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.requires_grad_(False)
    model = model.eval() if place.type == "cpu" else model.eval().to(place)
    return model, None if added is None else added.digest


def _adapter(folder: str | Path | None, config: ModelConfig) -> Adapter | None:
    return None if folder is None else read_adapter(folder, config)


def _engine(
    model: Transformer,
    plan: EnginePlan,
    reuse: ReusePolicy,
    disk: DiskTier | None,
    tokenizer: Tokenizer | None,
    options: dict[str, Any],
) -> Engine:
    return Engine(
        model,
        context_length=plan.context,
        cache_tokens=plan.cache.tokens,
        sequences=plan.cache.sequences,
        cache_dtype=plan.cache_dtype,
        reuse=replace(reuse, snapshots=plan.cache.snapshots),
        disk=disk,
        sampled_vocabulary=None if tokenizer is None else min(tokenizer.vocab_size, model.config.vocab_size),
        **options,
    )


def _drafting(draft: DraftChoice, speculate: bool, place: torch.device) -> tuple[bool, int]:
    if speculate and draft not in ("auto", "head"):
        raise ValueError(f'speculate: not together with draft={draft!r}; True is draft="head"')
    return drafting("head" if speculate else draft, on_card=place.type != "cpu", native=native.available())


def _check_head(wanted: bool, config: ModelConfig) -> None:
    if wanted and not config.predicts:
        raise ValueError(
            "draft must be auto, none or ngram for this folder: it has no prediction block (num_nextn_predict_layers "
            "is 0) and no draft head (there are no dspark_* keys)"
        )


def _budget(memory: int | str | None, free: int | None) -> int | None:
    if memory is None:
        return None
    budget = parse_memory(memory, free=free)
    check_budget("memory", budget, free)
    return budget


def _limit(expert_memory: int | str | None) -> int | Literal["all"] | None:
    if expert_memory is None or expert_memory == ALL:
        return ALL if expert_memory else None
    return parse_memory(expert_memory, "expert_memory")


def _begin(
    mode: ModeChoice,
    numa: NumaChoice,
    threads: int | None,
    slowdown: float | None,
    fused: bool | None,
    speculate: bool,
    **numbers: int,
) -> None:
    """Refuse unknown words and flags, and numbers that the engine would refuse after the weights are loaded; set the
    threads of torch."""
    check_choice(mode)
    check_numa(numa)
    check_threads(threads)
    for name, value in numbers.items():
        number(name, value, int, 1, MOST)
        if isinstance(value, float):  # 8.0, of which the engine makes no rows
            raise ValueError(f"{name} must be an integer in [1, {MOST}], got {value!r}")
    if slowdown is not None and not (isinstance(slowdown, int | float) and slowdown > 1):
        raise ValueError(f"slowdown must be more than 1, got {slowdown!r}")
    for name, choice, known in (("fused", fused, (True, False, None)), ("speculate", speculate, (True, False))):
        if not any(choice is one for one in known):
            raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {choice!r}")
    if threads is not None:
        torch.set_num_threads(threads)


def _check_reuse(policy: ReusePolicy | None, folder: Path | None, budget: int) -> None:
    if not (policy is None or isinstance(policy, ReusePolicy)):
        raise ValueError(f"reuse must be a dsv4.cache.prefix.ReusePolicy, got {policy!r}")
    if folder is None:
        return
    number("prefix_bytes", budget, int, LEAST_DISK, MOST_DISK)
    if why := unusable(Path(folder)):
        raise ValueError(f"the folder for prefixes {str(folder)!r} cannot be used: {why}")


def _open(folder: Path, *, draft: bool) -> tuple[ModelConfig, CheckpointReader, SamplingDefaults]:
    """A folder's config with every token that ends an answer, its reader, and its sampling defaults. Warns of unused
    files and settings. draft: with the folder's draft head, if it has one."""
    opened = open_folder(folder)
    advice = read_generation(folder, opened.config.vocab_size)
    ends = dict.fromkeys((*opened.config.end_token_ids, *advice.end_token_ids))
    for note in (*opened.notes, *advice.notes):
        warnings.warn(note, stacklevel=3)
    config = opened.config.with_changes(end_token_ids=tuple(ends))
    if config.dspark and not draft:
        config = config.without_prediction()
    _check_head(draft, config)
    return config, opened.reader, SamplingDefaults(advice.temperature, advice.top_p, advice.example_prompts)


def _disk_tier(folder: Path | None, budget: int, fingerprint: str) -> DiskTier | None:
    return None if folder is None else DiskTier(folder, budget=budget, fingerprint=fingerprint)


def _limit_experts(model: Transformer, reader: CheckpointReader, budget: int | None) -> ExpertBudget | None:
    """Limit the memory of routed experts as the plan says, for as long as the model lives; the others stay in the
    checkpoint's files."""
    if budget is None:
        return None
    largest = max(block.ffn.weights().largest_expert() for block in model.blocks)
    made = ExpertBudget(reader.maps(), budget, largest)
    weakref.finalize(model, made.close)
    return made


def _settled(
    model: Transformer, plan: EnginePlan, numa: NumaChoice, say: Callable[[str], None] | None
) -> ThreadPlaces | None:
    """Put the weights of a model on the memory nodes of this machine; returns where its threads run."""
    placement = place(plan, read_topology(), numa, torch.get_num_threads())
    if say is not None and (placement.threads is not None or numa == "interleave"):
        say(f"numa: {placement.why}" + ("; the weights are read now" if placement.nodes else ""))
    return settle(model, placement, say or (lambda line: warnings.warn(line, stacklevel=4)))


def _fingerprint(folder: Path, *settings: object) -> str:
    """A digest of everything a cached row depends on: configuration, weight files, numerics and storage."""
    digest = hashlib.blake2b(f"{settings} {native.isa() if native.available() else 'torch'}".encode(), digest_size=16)
    digest.update((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update("{} {} {}".format(file.name, *stamp(file)).encode())
    return digest.hexdigest()
