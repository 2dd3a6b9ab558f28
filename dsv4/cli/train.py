"""`dsv4 train`: run a recipe, show how it goes, keep everything needed to go on."""

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from dsv4.distributed.mesh import Mesh
    from dsv4.encoding import Tokenizer
    from dsv4.training.recipe import Recipe
    from dsv4.training.trainer import Line, Trainer

TEXTS_FOR_TOKENIZER = 20_000  # documents a tokenizer is trained on at most


def train(
    recipe: Path,
    *,
    set: Annotated[Sequence[str], Parameter(negative=())] = (),
    folder: Path | None = None,
    live: int | None = 0,
    track: Literal["trackio", "tensorboard", "wandb"] | None = None,
    table: bool = False,
    export: Literal["auto", "release", "bf16", "fp32", "none"] = "auto",
    threads: int | None = None,
) -> None:
    """Train a model from a recipe, or go on with a run that was stopped.

    Parameters
    ----------
    recipe
        TOML file; recipes/ has some, docs/training.md describes every field.
    set
        Change a field: --set lr.peak=1e-3; repeat the flag for several.
    folder
        Where the run lives: state, log, report, model. Default: runs/NAME of the recipe.
    live
        Port of the page with the curves on 127.0.0.1; 0 takes a free one, -1 turns it off.
    track
        Also log to trackio, tensorboard or wandb (offline); needs that package.
    table
        Print which optimiser moves which parameter, and stop.
    export
        Layout of the finished model in FOLDER/model: auto is release after quantisation-aware training, else bf16.
    threads
        CPU threads. Default: all cores this process may use.
    """
    import torch

    from dsv4.training.param_groups import table as placement
    from dsv4.training.recipe import Recipe

    made = Recipe.from_file(recipe, set)
    place = folder or Path("runs") / made.name
    if threads is not None:
        torch.set_num_threads(threads)
    if table:
        from dsv4.model.transformer import Transformer

        with torch.device("meta"):
            print(placement(Transformer(made.config(made.data.vocabulary or 4096))))
        return
    place.mkdir(parents=True, exist_ok=True)
    _train(made, place, live, track, export)


def _train(recipe: "Recipe", place: Path, live: int | None, track: str | None, export: str) -> None:
    """The run itself, on this process or, under torchrun, on all of them."""
    from dsv4.distributed.mesh import Mesh, launched

    if not launched():
        recipe.scale.check(1)
    mesh = Mesh.start(recipe.scale) if launched() else None
    if mesh is not None and mesh.rank:
        mesh.wait()  # the first rank makes what all read
    tokenizer = _tokenizer(recipe, place)
    trainer = _trainer(recipe, place, tokenizer, mesh)
    if trainer.team.rank:
        _follow(trainer)
    else:
        _run(trainer, recipe, place, live, track)
    if export != "none" and not trainer.team.rank:
        _export(trainer, place, export)
    if mesh is not None:
        mesh.wait()
        mesh.close()


def _tokenizer(recipe: "Recipe", place: Path) -> "Tokenizer":
    """The recipe's, or the run's own, trained on the text sources when the run starts."""
    from dsv4.encoding import Tokenizer, train_bpe
    from dsv4.training.data import FIM_TOKENS
    from dsv4.training.source_texts import files_of, texts_of

    if recipe.data.tokenizer is not None:
        return Tokenizer.load(recipe.data.tokenizer)
    if (place / "tokenizer.json").exists():
        return Tokenizer.load(place)
    sources = [s for s in recipe.data.sources if s.kind != "generator"]
    if not sources:
        raise ValueError("data.vocabulary: a tokenizer is trained on text; with generators alone give data.tokenizer")
    assert recipe.data.vocabulary is not None

    def texts() -> Any:
        for source in sources:
            for number, text in enumerate(texts_of(source, files_of(source))):
                if number == TEXTS_FOR_TOKENIZER:
                    break
                yield text

    with _console().status("training the tokenizer"):
        return train_bpe(texts(), recipe.data.vocabulary, place, extra=FIM_TOKENS if recipe.data.fim else ())


def _trainer(recipe: "Recipe", place: Path, tokenizer: "Tokenizer", mesh: "Mesh | None") -> "Trainer":
    from dsv4.training.data import open_sources
    from dsv4.training.team import Ranks
    from dsv4.training.trainer import Trainer

    with _console().status("reading the data") as status:
        sources = open_sources(
            recipe, tokenizer, place / "data", lambda name, n: status.update(f"reading {name}: {n:,} tokens")
        )
    if mesh is None:
        return Trainer(recipe, place, tokenizer, sources)
    if mesh.rank == 0:
        mesh.wait()
    return Trainer(recipe, place, tokenizer, sources, team=Ranks(mesh))


def _follow(trainer: "Trainer") -> None:
    """What every rank but the first does: train, and stop when the first does."""
    with _StopAfterStep() as stop:
        for _ in trainer.run():
            if trainer.team.agree(stop.asked):
                trainer.save()
                raise KeyboardInterrupt


def _run(trainer: "Trainer", recipe: "Recipe", place: Path, live: int | None, track: str | None) -> None:
    from dsv4.training.curves import LivePage, report_html
    from dsv4.training.logbook import Logbook, open_tracker, read_log

    trackers = (open_tracker(track, recipe.name, place, recipe.to_dict()),) if track else ()
    log = Logbook(place / "log.jsonl", trainer.step, trackers)
    page = LivePage(recipe.name, log.file, live) if live is not None and live >= 0 else None
    console = _console()
    console.print(f"{recipe.name}: step {trainer.step:,}, {trainer.tokens:,} of {trainer.schedule.tokens:,} tokens")
    if page is not None:
        console.print(f"curves: {page.url}")
    try:
        with _StopAfterStep() as stop, _Progress(trainer) as progress:
            for line in trainer.run():
                log.write(line.to_dict())
                progress.show(line)
                if trainer.team.agree(stop.asked):
                    trainer.save()
                    console.print("saved; the same command goes on")
                    raise KeyboardInterrupt
    finally:
        log.close()
        if page is not None:
            page.close()
        lines = list(read_log(log.file))
        html = report_html(recipe.name, {recipe.name: lines}, {"recipe": recipe.to_dict()})
        (place / "report.html").write_text(html, encoding="utf-8")
    console.print(f"done in {trainer.seconds / 60:.1f} minutes; report: {place / 'report.html'}")


class _StopAfterStep:
    """Ctrl-C and SIGTERM ask for a stop once the step is done, so that what is saved is whole; a second one stops at
    once, and the last saved state stays."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_StopAfterStep":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _export(trainer: "Trainer", place: Path, layout: str) -> None:
    """The finished model as a folder that every verb loads; replaces an earlier one."""
    import shutil

    from dsv4.checkpoint import save_checkpoint
    from dsv4.checkpoint.names import LAYOUTS

    if layout == "auto":
        layout = "release" if trainer.recipe.qat_from is not None else "bf16"
    config = trainer.model.config
    if layout == "release":
        config = config.with_changes(quantized=True, expert_dtype="fp4")
    text_side = Path(trainer.recipe.data.tokenizer or place)
    files = {name: (text_side / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    target, staging = place / "model", place / "model.new"
    shutil.rmtree(staging, ignore_errors=True)
    save_checkpoint(staging, config, trainer.weights(), LAYOUTS[layout], extra_files=files)
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    _console().print(f"model: {target} ({layout})")


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, stderr=True)


class _Progress:
    """A bar in a terminal, a line now and then elsewhere."""

    EVERY = 10.0  # seconds between lines

    def __init__(self, trainer: "Trainer") -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = _console()
        self._trainer, self._last = trainer, 0.0
        self._bar = Progress(
            TextColumn("{task.fields[phase]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=trainer.schedule.tokens, completed=trainer.tokens, phase="", text="", start=True
        )

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, line: "Line") -> None:
        import time

        text = describe(line)
        self._bar.update(self._task, completed=self._trainer.tokens, phase=line.phase, text=text)
        if line.spike is not None:
            self._console.print(f"spike at {line.spike}: back to step {line.back_to}, routing ahead for a while")
        if not self._console.is_terminal and time.monotonic() - self._last > self.EVERY:
            self._last = time.monotonic()
            self._console.print(f"step {line.step:,}  {line.tokens:,} tokens  {line.phase}  {text}")


def describe(line: "Line") -> str:
    """The numbers people watch, in one line."""
    losses = line.losses
    parts = [f"loss {losses['next']:.3f}"]
    parts += [f"{name} {losses[name]:.3f}" for name in ("mtp", "indexer") if name in losses]
    if "recall_mass" in losses:
        parts.append(f"recall {losses['recall_mass']:.2f}")
    parts += [f"lr {line.lr:.2e}", f"norm {line.grad_norm:.2f}", f"load +{line.max_violation:.1f}"]
    return "  ".join([*parts, f"{line.tokens_per_second:,.0f} tok/s", f"MFU {line.mfu:.0%}"])
