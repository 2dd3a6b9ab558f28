"""The log of a run: one JSON line per step in a file that anything can read, and copies for the trackers people use."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

TRACKERS = ("trackio", "tensorboard", "wandb")


class Tracker(Protocol):
    """Where numbers are also sent."""

    def log(self, numbers: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Logbook:
    """`log.jsonl` of a run. Opening it for a run that goes on from `step` drops the lines from there on."""

    def __init__(self, file: Path, step: int = 0, trackers: tuple[Tracker, ...] = ()) -> None:
        self.file, self._trackers = file, trackers
        if file.exists():
            kept = [line for line in read_log(file) if line["step"] < step]
            temporary = file.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(temporary, file)
        self._out = file.open("a", encoding="utf-8", buffering=1)

    def write(self, line: dict[str, Any]) -> None:
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in line.items()}
        self._out.write(json.dumps(rounded) + "\n")
        numbers = {k: float(v) for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        for tracker in self._trackers:
            tracker.log(numbers, line["step"])

    def close(self) -> None:
        self._out.close()
        for tracker in self._trackers:
            tracker.close()


def read_log(file: Path) -> Iterator[dict[str, Any]]:
    """Its lines; one that was cut off by a crash is passed over."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def open_tracker(kind: str, name: str, folder: Path, settings: dict[str, Any]) -> Tracker:
    """A tracker by name. All of them write locally; raises ValueError when its package is not installed."""
    opened = {"trackio": _Trackio, "tensorboard": _TensorBoard, "wandb": _Wandb}.get(kind)
    if opened is None:
        raise ValueError(f"--track must be one of {', '.join(TRACKERS)}, got {kind!r}")
    try:
        return opened(name, folder, settings)
    except ImportError:
        raise ValueError(f"--track {kind} needs its package: pip install {kind}") from None


class _Trackio:
    def __init__(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        import trackio  # pyrefly: ignore

        self._trackio = trackio
        trackio.init(project=name, config=settings)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._trackio.log(numbers, step=step)

    def close(self) -> None:
        self._trackio.finish()


class _Wandb:
    def __init__(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        import wandb  # pyrefly: ignore

        # NOTE: WANDB_MODE=online sends the numbers to the service
        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(project=name, config=settings, dir=str(folder), mode=mode)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    def __init__(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("recipe", f"```\n{json.dumps(settings, indent=1)}\n```")

    def log(self, numbers: dict[str, float], step: int) -> None:
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()
