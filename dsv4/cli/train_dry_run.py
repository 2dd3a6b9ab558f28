"""`dsv4 train --dry-run`: every stage of a recipe for a step, the end of the run, and what all of it will cost."""

import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from shutil import copy
from typing import TYPE_CHECKING, Any

from dsv4.bench.memory import peak_bytes, reset_peak
from dsv4.cli.progress import console
from dsv4.cli.train_start import RunInputs, prepare, reading
from dsv4.training.checks import check_room, check_sources, needs_of, size
from dsv4.training.recipe import Recipe

if TYPE_CHECKING:
    from dsv4.checkpoint.names import Layout
    from dsv4.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Trial:
    """A stretch of the run in which a step costs the same. start, end: in tokens seen."""

    name: str
    start: int
    end: int
    anticipating: bool = False


@dataclass(frozen=True, slots=True)
class Cost:
    """Of the last step tried. peak: bytes of the process, or of the card, the highest in this trial."""

    trial: Trial
    tokens: int
    seconds: float
    peak: int


def dry_run(recipe: Recipe, place: Path, export: str, steps: int = 1) -> None:
    """Try the recipe in a temporary folder beside `place` and print what was seen; nothing stays. Raises ValueError for
    what would have ended the run."""
    from dsv4.distributed.mesh import launched

    if launched():
        raise ValueError("--dry-run tries a recipe in one process: start it without torchrun")
    if recipe.draft is not None:
        raise ValueError("--dry-run: not for a recipe with [draft]; --steps 1 tries a step of it")
    check_sources(recipe)
    parent = next(folder for folder in (place.parent, *place.parent.absolute().parents) if folder.is_dir())
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix=".dsv4-dry-run-", dir=parent) as name:
        folder = Path(name)
        for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.origin"):
            if recipe.data.tokenizer is None and (place / file).is_file():
                copy(place / file, folder / file)
        _try(recipe, folder, prepare(recipe, folder, export), steps)


def _try(recipe: Recipe, folder: Path, prepared: RunInputs, steps: int) -> None:
    from dsv4.training.data import open_sources
    from dsv4.training.trainer import Trainer

    print(f"dry run of {recipe.name}: {recipe.schedule.tokens:,} tokens in {len(recipe.stages)} stages")
    print(f"tokenizer: {prepared.tokenizer.vocab_size:,} tokens")
    with reading() as progress:
        sources = open_sources(recipe, prepared.tokenizer, folder / "data", progress)
    for settings, source in zip(recipe.data.sources, sources, strict=True):
        count = "made as they are needed" if source.count is None else f"{source.count:,}"
        print(f"source {settings.name}: documents {count}")
    trainer = Trainer(recipe, folder, prepared.tokenizer, sources)
    costs = [_cost(trainer, trial, steps) for trial in trials(recipe)]
    written = _state(trainer, folder)
    if prepared.layout is not None:
        _model(trainer, folder, prepared, prepared.layout)
    needs = needs_of(recipe, trainer.model.config, prepared.layout)
    check_room(folder, needs)
    print(f"room on the disk: {size(needs.disk)} for states and model; a state took {written:.1f} s")
    print(f"the whole run: about {_duration(whole_seconds(recipe, costs))}, by the last step of each line above")
    print("nothing was kept")


def trials(recipe: Recipe) -> list[Trial]:
    """Every stage, cut where quantised training begins, and at last a step that routes ahead."""
    found: list[Trial] = []
    start = 0
    for i, stage in enumerate(recipe.stages):
        end = start + stage.tokens
        cut = recipe.qat_from if recipe.qat_from is not None and start < recipe.qat_from < end else None
        borders = [start, end] if cut is None else [start, cut, end]
        for first, last in pairwise(borders):
            quantised = ", quantised" if recipe.schedule.at(first).qat else ""
            found.append(Trial(f"stage {i}: {stage.phase.value}, {stage.length:,} long{quantised}", first, last))
        start = end
    if recipe.run.recovery:
        last = found[-1]
        found.append(Trial("after a spike: routed ahead", last.start, last.start, anticipating=True))
    return found


def whole_seconds(recipe: Recipe, costs: list[Cost]) -> float:
    """Of the whole run, if every step costs what the tried one did."""
    return sum((c.trial.end - c.trial.start) * c.seconds / c.tokens for c in costs)


def _cost(trainer: "Trainer", trial: Trial, steps: int) -> Cost:
    trainer.stand_at(trial.start, anticipating=trial.anticipating)
    device = trainer.team.device
    reset_peak(device)
    line: Any = None
    for _ in range(steps):
        line = trainer.advance()
        if line.spike is not None:
            raise ValueError(f"{trial.name}: {line.spike}")
    tokens = round(line.tokens_per_second * line.seconds)
    cost = Cost(trial, tokens, line.seconds, peak_bytes(device))
    print(
        f"{trial.name}: a step of {tokens:,} tokens in {line.seconds:.2f} s ({line.tokens_per_second:,.0f} tokens/s), "
        f"{size(cost.peak)} of memory, loss {line.losses['next']:.3f}",
        flush=True,
    )
    return cost


def _state(trainer: "Trainer", folder: Path) -> float:
    """A state written and read again; seconds."""
    from dsv4.training.states import STATE_FILE, load_state

    began = time.perf_counter()
    trainer.save()
    took = time.perf_counter() - began
    file = folder / STATE_FILE
    load_state(file)
    print(f"state: {size(file.stat().st_size)}, written and read again")
    return took


def _model(trainer: "Trainer", folder: Path, prepared: RunInputs, layout: "Layout") -> None:
    """The export, and an answer from it."""
    from dsv4.api.loading import load
    from dsv4.cli.train_export import export_model

    target = export_model(folder, trainer.model.config, trainer.weights(), layout, prepared.text_side)
    bytes_ = sum(file.stat().st_size for file in target.iterdir())
    mode = "release" if layout.name == "release" else "fp32" if layout.name == "fp32" else "bf16"
    with console().status("loading the model"):
        text = load(target, mode, context_length=256, sequences=1).generate("a", max_tokens=4, temperature=0)
    print(f"model: {size(bytes_)} in the layout {layout.name}, loaded in mode {mode}; it answers {str(text)!r}")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that the temporary folder goes."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
