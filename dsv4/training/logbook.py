"""The log of a run: one JSON line per step in a file, and copies for experiment trackers."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from dsv4.files import is_full, naming, write_whole

_log = logging.getLogger(__name__)

TRACKERS = ("trackio", "tensorboard", "wandb")


class Tracker(Protocol):
    """An experiment tracker that also receives the numbers."""

    def log(self, numbers: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Logbook:
    """`log.jsonl` of a run. Opening it for a run that goes on from `step` drops the lines from there on.

    On a full disk, lines wait in memory. A tracker that fails is reported once and gets no more numbers. close() raises
    OSError for lines that could not be written.
    """

    def __init__(self, file: Path, step: int = 0, trackers: tuple[Tracker, ...] = ()) -> None:
        self.file, self._trackers = file, list(trackers)
        if file.exists():
            kept = "".join(json.dumps(line) + "\n" for line in read_log(file) if line["step"] < step)
            write_whole(file, lambda out: out.write(kept.encode()))
        self._out = file.open("ab", buffering=0)
        self._waiting = b""

    def write(self, line: dict[str, Any]) -> None:
        rounded = {k: _rounded(v) if isinstance(v, float) else v for k, v in line.items()}
        told = bool(self._waiting)
        self._waiting += json.dumps(rounded).encode() + b"\n"
        try:
            self._flush()
        except OSError as error:
            if not is_full(error):
                raise
            if not told:
                _log.warning("%s; lines of the log wait in memory", error)
        numbers = {k: float(v) for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        self._tell_trackers(lambda tracker: tracker.log(numbers, line["step"]))

    def close(self) -> None:
        self._tell_trackers(lambda tracker: tracker.close())
        try:
            self._flush()
        finally:
            self._out.close()

    def _flush(self) -> None:
        """Write all waiting lines or none: a partial write is cut off again."""
        if not self._waiting:
            return
        end = self._out.seek(0, os.SEEK_END)
        try:
            with naming(self.file):
                left = memoryview(self._waiting)
                while left:
                    left = left[self._out.write(left) :]
        except OSError:
            self._out.truncate(end)
            raise
        self._waiting = b""

    def _tell_trackers(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                tell(tracker)
            except Exception as error:  # code of others; a run of days must not end by it
                _log.warning("%s failed and gets no more numbers: %s", type(tracker).__name__.strip("_"), error)
                self._trackers.remove(tracker)


def _rounded(value: float) -> float | None:
    """Six digits; null for NaN and infinity, which JSON cannot hold."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def read_log(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log; a line that a crash cut off is left out."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                found = json.loads(line, parse_constant=lambda word: None)
            except ValueError:
                continue
            if isinstance(found, dict) and "step" in found:
                yield found


def check_tracker(kind: str) -> None:
    """Raise ValueError unless a tracker of this name can be opened."""
    if kind not in TRACKERS:
        raise ValueError(f"--track must be one of {', '.join(TRACKERS)}, got {kind!r}")
    if find_spec(kind) is None:
        raise ValueError(f"--track {kind} needs its package: pip install {kind}")


def open_tracker(kind: str, name: str, folder: Path, settings: dict[str, Any]) -> Tracker:
    """A tracker by name. All of them write locally; raises ValueError when its package is not installed."""
    check_tracker(kind)
    return {"trackio": _Trackio, "tensorboard": _TensorBoard, "wandb": _Wandb}[kind](name, folder, settings)


class _Trackio:
    def __init__(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        self._trackio = import_module("trackio")
        self._trackio.init(project=name, config=settings)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._trackio.log(numbers, step=step)

    def close(self) -> None:
        self._trackio.finish()


class _Wandb:
    def __init__(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        # NOTE: WANDB_MODE=online sends the numbers to the service
        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = import_module("wandb").init(project=name, config=settings, dir=str(folder), mode=mode)

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
