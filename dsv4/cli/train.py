"""`dsv4 train`: run a recipe, show how it goes, keep everything needed to go on."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from dsv4.cli.train_start import before_the_run, console, prepare, reading, told_in_sentences

if TYPE_CHECKING:
    from dsv4.distributed.mesh import Mesh
    from dsv4.encoding import Tokenizer
    from dsv4.training.curves import LivePage
    from dsv4.training.logbook import Logbook
    from dsv4.training.recipe import Recipe
    from dsv4.training.trainer import Line, Trainer


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
    steps: int | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
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
    steps
        Save and stop after this many steps; the same command resumes. With --dry-run: steps of each stage (default 1).
    dry_run
        Run every stage for a step in a temporary folder, export and load the model, say what the run will cost.
    """
    from dsv4.training.recipe import Recipe

    for name, value in (("threads", threads), ("steps", steps)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    made = Recipe.from_file(recipe, set)
    place = folder or Path("runs") / made.name
    with told_in_sentences():
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        if table:
            _print_table(made)
        elif dry_run:
            from dsv4.cli.train_dry_run import dry_run as rehearse

            rehearse(made, place, export, steps or 1)
        else:
            _train(made, place, live, track, export, steps)


def _print_table(recipe: "Recipe") -> None:
    import torch

    from dsv4.model.transformer import Transformer
    from dsv4.training.param_groups import table

    with torch.device("meta"):
        print(table(Transformer(recipe.config(recipe.data.vocabulary or 4096))))


def _train(recipe: "Recipe", place: Path, live: int | None, track: str | None, export: str, steps: int | None) -> None:
    """The run itself, on this process or, under torchrun, on all of them."""
    from dsv4.distributed.mesh import Mesh, launched

    if not launched():
        recipe.scale.check(1)
    mesh = Mesh.start(recipe.scale) if launched() else None
    if mesh is not None and mesh.rank:
        mesh.wait()  # the first rank makes what all read
    with ExitStack() as held:
        first = mesh is None or not mesh.rank
        page = before_the_run(recipe, place, live, track, held) if first else None
        prepared = prepare(recipe, place, export)
        trainer = _trainer(recipe, place, prepared.tokenizer, mesh)
        finished = _run(trainer, place, page, track, steps) if first else _follow(trainer, steps)
        if finished and first and prepared.layout is not None:
            from dsv4.cli.train_export import export_model

            target = export_model(place, trainer.model.config, trainer.weights(), prepared.layout, prepared.text_side)
            console().print(f"model: {target} ({prepared.layout.name})")
        if mesh is not None:
            mesh.wait()
            mesh.close()


def _trainer(recipe: "Recipe", place: Path, tokenizer: "Tokenizer", mesh: "Mesh | None") -> "Trainer":
    from dsv4.training.data import open_sources
    from dsv4.training.trainer import Trainer

    with reading() as progress:
        sources = open_sources(recipe, tokenizer, place / "data", progress)
    if mesh is None:
        return Trainer(recipe, place, tokenizer, sources)
    if mesh.rank == 0:
        mesh.wait()
    from dsv4.distributed.ranks import Ranks

    return Trainer(recipe, place, tokenizer, sources, team=Ranks(mesh))


def _follow(trainer: "Trainer", steps: int | None) -> bool:
    """What every rank but the first does: train, and stop when the first does. Whether the run came to its end."""
    with _StopAfterStep() as stop:
        for count, _ in enumerate(trainer.run(), start=1):
            if trainer.team.agree(stop.asked):
                trainer.save()
                raise KeyboardInterrupt
            if count == steps and not trainer.done:
                trainer.save()
                return False
    return True


def _run(trainer: "Trainer", place: Path, page: "LivePage | None", track: str | None, steps: int | None) -> bool:
    """Train, and tell how it goes. Whether the run came to its end."""
    from dsv4.training.logbook import Logbook, open_tracker

    recipe = trainer.recipe
    trackers = (open_tracker(track, recipe.name, place, recipe.to_dict()),) if track else ()
    log = Logbook(place / "log.jsonl", trainer.step, trackers)
    out = console()
    out.print(f"{recipe.name}: step {trainer.step:,}, {trainer.tokens:,} of {trainer.schedule.tokens:,} tokens")
    if page is not None:
        out.print(f"curves: {page.url}")
    with _reported(recipe, log, place), _StopAfterStep() as stop, _Progress(trainer) as progress:
        for count, line in enumerate(trainer.run(), start=1):
            log.write(line.to_dict())
            progress.show(line)
            if trainer.team.agree(stop.asked):
                trainer.save()
                out.print("saved; the same command goes on")
                raise KeyboardInterrupt
            if count == steps and not trainer.done:
                trainer.save()
                out.print(f"saved after {count:,} steps; the same command goes on")
                return False
    out.print(f"done in {trainer.seconds / 60:.1f} minutes; report: {place / 'report.html'}")
    return True


@contextmanager
def _reported(recipe: "Recipe", log: "Logbook", place: Path) -> Iterator[None]:
    """When left in any way: the log closed, and a report of it. Neither hides why the run ended."""
    from dsv4.files import write_whole
    from dsv4.training.curves import report_html
    from dsv4.training.logbook import read_log

    try:
        yield
    finally:
        try:
            log.close()
            html = report_html(recipe.name, {recipe.name: list(read_log(log.file))}, {"recipe": recipe.to_dict()})
            write_whole(place / "report.html", lambda out: out.write(html.encode("utf-8", "replace")))
        except OSError as error:
            console().print(f"the log or the report is not complete: {error}")


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


class _Progress:
    """A bar in a terminal, a line now and then elsewhere."""

    EVERY = 10.0  # seconds between lines

    def __init__(self, trainer: "Trainer") -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console()
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
