"""The flags of a fine-tuning run that are not part of its recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class RunFlags:
    """Where a run lives and what it shows.

    Parameters
    ----------
    folder
        Where the run lives: state, log, report, model. Default: runs/NAME.
    held_out
        Conversations that are not learned: their loss is printed before and after.
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
    device
        Where it computes: cpu, cuda (a card; not run on one yet), cuda:N, or auto. Default: as the recipe says, or cpu.
    """

    folder: Path | None = None
    held_out: Path | None = None
    live: int | None = 0
    track: Literal["trackio", "tensorboard", "wandb"] | None = None
    export: Literal["auto", "release", "release_fp8", "base", "bf16", "fp32", "none"] = "auto"
    threads: int | None = None
    steps: int | None = None
    device: str | None = None
