"""`dsv4 sft`: fine-tune a model on conversations."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dsv4.cli.train_start import told_in_sentences

Export = Literal["auto", "release", "release_fp8", "base", "bf16", "fp32", "none"]


def sft(
    recipe: Path | None = None,
    *,
    init: Path | None = None,
    data: Annotated[Sequence[Path], Parameter(negative=())] = (),
    epochs: float | None = None,
    lr: float | None = None,
    length: int | None = None,
    held_out: Path | None = None,
    set: Annotated[Sequence[str], Parameter(negative=())] = (),
    folder: Path | None = None,
    live: int | None = 0,
    track: Literal["trackio", "tensorboard", "wandb"] | None = None,
    export: Export = "auto",
    threads: int | None = None,
    steps: int | None = None,
) -> None:
    """Fine-tune a model on conversations (--init models/nano --data my.jsonl), or go on with a run that was stopped.

    Parameters
    ----------
    recipe
        TOML file with what the flags and the defaults do not say; docs/finetune.md describes it.
    init
        The model to start from: a checkpoint folder, or the folder of a finished run.
    data
        JSON lines of conversations ({"messages": [...]}), a file or a folder of them; repeat the flag for several.
    epochs
        How often every conversation is seen.
    lr
        Highest learning rate.
    length
        Tokens of a packed sequence; longer conversations are left out, and told. Default: the longest, at most 4,096.
    held_out
        Conversations that are not learned: their loss is printed before and after.
    set
        Change a field of the recipe: --set optimizer.kind=muon; repeat the flag for several.
    folder
        Where the run lives: state, log, report, model. Default: runs/NAME.
    live
        Port of the page with the curves on 127.0.0.1; 0 takes a free one, -1 turns it off.
    track
        Also log to trackio, tensorboard or wandb (offline); needs that package.
    export
        Layout of the finished model in FOLDER/model: auto is the layout of the model it started from.
    threads
        CPU threads. Default: all cores this process may use.
    steps
        Save and stop after this many steps; the same command resumes.
    """
    from dsv4.cli.sft_run import Options, fine_tune
    from dsv4.posttraining.sft import Wishes

    _check(epochs=epochs, lr=lr, length=length, threads=threads, steps=steps)
    wishes = Wishes(tuple(data), None, epochs, lr, length)
    options = Options(folder, held_out, live, track, export, threads, steps)
    with told_in_sentences():
        fine_tune(_read(recipe, set), init, wishes, options)


def _check(**flags: float | None) -> None:
    """Raise ValueError for a flag that is not positive."""
    for name, value in flags.items():
        if value is not None and not value > 0:
            raise ValueError(f"--{name} must be positive, got {value}")


def _read(recipe: Path | None, changes: Sequence[str]) -> dict[str, Any]:
    """The tables of a recipe, changed as --set says."""
    from dsv4.training.recipe_fields import set_field
    from dsv4.training.text_files import read_text

    raw: dict[str, Any] = {}
    if recipe is not None:
        if not recipe.is_file():
            raise ValueError(f"{recipe}: no such recipe; a file of conversations is given as --data {recipe}")
        try:
            raw = tomllib.loads(read_text(recipe))
        except tomllib.TOMLDecodeError as error:
            hint = f"; conversations are given as --data {recipe}" if recipe.suffix != ".toml" else ""
            raise ValueError(f"{recipe}: {error}{hint}") from None
    for change in changes:
        set_field(raw, change)
    return raw
