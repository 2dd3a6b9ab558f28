"""Training runs in a folder, read while they go on: which there are, and the lines of their logs.

A run is a folder with `log.jsonl`, one JSON object per line, as `dsv4 train`, `sft`, `grpo` and `distill` write it.
Nothing is written or locked here.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv4.server.wire.errors import ApiError, show

LOG, LOCK = "log.jsonl", "run.lock"
DEEPEST, MOST_RUNS = 4, 300
# lines that one answer holds: of a longer log every n-th, because a curve shows no more
MOST_LINES = 2000
# bytes of a log that one answer reads; the next answer goes on behind them
MOST_BYTES = 64 << 20
# samples of the last steps are sent, and the ends of their texts
MOST_SAMPLES = 24
# bytes from the end of a log in which its last line is looked for
TAIL_BYTES = 256 << 10
# the kernel's list of locks: it shows who holds one without taking it
LOCKS = Path("/proc/locks")


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs below a folder. Links are not followed."""

    folder: Path

    def listed(self) -> list[dict[str, Any]]:
        """Name, time of the last line, size, whether a process writes it, and the last line, the newest run first.
        running: None where the system does not tell."""
        found: list[dict[str, Any]] = []
        for name, place in self._places():
            try:
                status = (place / LOG).stat()
                last = _last_line(place / LOG)
            except OSError:
                continue  # it was removed meanwhile
            found.append(
                {
                    "name": name,
                    "changed": status.st_mtime,
                    "bytes": status.st_size,
                    "running": _is_held(place / LOCK),
                    "last": _numbers(last) if last else None,
                }
            )
        return sorted(found, key=lambda run: run["changed"], reverse=True)

    def lines(self, name: str, start: int, file: int) -> dict[str, Any]:
        """The numbers of the lines of a run from byte `start` on, and its newest samples.

        file: the number of the file that `start` belongs to. A run that resumes writes a new file; its answer then
        begins at the first byte, with `restarted`. `next` is where the next answer begins. Raises ApiError 404.
        """
        place = dict(self._places()).get(name)
        if place is None:
            raise ApiError(
                404, f"run: {show(name)} does not exist in the folder of runs", param="run", code="not_found"
            )
        try:
            with (place / LOG).open("rb") as log:
                status = os.fstat(log.fileno())
                restarted = file != status.st_ino or start > status.st_size
                if restarted:
                    start = 0
                log.seek(start)
                data = log.read(MOST_BYTES)
        except OSError as error:
            raise ApiError(404, f"run: {show(name)} cannot be read: {error.strerror}", param="run") from error
        whole = data.rfind(b"\n") + 1  # a line that is being written is left for the next answer
        if not whole and len(data) == MOST_BYTES:
            whole = MOST_BYTES  # no line of a run is so long
        lines = list(_parsed(data[:whole]))
        every = -(-len(lines) // MOST_LINES) or 1
        return {
            "name": name,
            "file": status.st_ino,
            "next": start + whole,
            "restarted": restarted,
            "every": every,
            "running": _is_held(place / LOCK),
            "load": _load(lines),
            "lines": [_numbers(line) for at, line in enumerate(lines) if _is_kept(line, at, len(lines), every)],
            "samples": _samples(lines),
        }

    def _places(self) -> Iterator[tuple[str, Path]]:
        """Names and folders; the name is the path below the folder of runs."""
        count = 0
        for path, folders, files in os.walk(self.folder):
            place = Path(path)
            depth = len(place.relative_to(self.folder).parts)
            folders[:] = sorted(folders) if depth < DEEPEST else []
            if LOG in files and not (place / LOG).is_symlink():
                yield place.relative_to(self.folder).as_posix(), place
                count += 1
                if count == MOST_RUNS:
                    return


def _parsed(data: bytes) -> Iterator[dict[str, Any]]:
    """The lines that are steps; one that a crash cut off is left out."""
    for line in data.splitlines():
        try:
            found = json.loads(line, parse_constant=lambda word: None)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            yield found


def _is_kept(line: dict[str, Any], at: int, count: int, every: int) -> bool:
    """Every n-th line, the last one, and those that tell of a spike or of a measurement that is made now and then."""
    return at % every == 0 or at == count - 1 or bool(line.get("spike")) or "held_out_reward" in line


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    """A line without the texts of its samples and the load of all experts."""
    return {name: value for name, value in line.items() if name not in ("samples", "expert_load")}


def _load(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The newest load of the experts by layer, in equal shares; None if none of these lines has one."""
    line = next((line for line in reversed(lines) if isinstance(line.get("expert_load"), dict)), None)
    return None if line is None else {"step": line["step"], "layers": line["expert_load"]}


def _samples(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples of the last lines that have some, the newest step first."""
    found: list[dict[str, Any]] = []
    for line in reversed(lines):
        samples = line.get("samples")
        if isinstance(samples, list):
            found += [{"step": line["step"], **sample} for sample in samples if isinstance(sample, dict)]
        if len(found) >= MOST_SAMPLES:
            break
    return found[:MOST_SAMPLES]


def _last_line(log: Path) -> dict[str, Any] | None:
    with log.open("rb") as data:
        size = data.seek(0, os.SEEK_END)
        data.seek(max(0, size - TAIL_BYTES))
        tail = data.read()
    lines = list(_parsed(tail[: tail.rfind(b"\n") + 1]))
    return lines[-1] if lines else None


def _is_held(lock: Path) -> bool | None:
    """Whether a process holds the lock of a run; None where that cannot be seen."""
    try:
        held = LOCKS.read_text(encoding="ascii")
    except OSError:
        return None
    try:
        number = lock.stat().st_ino
    except OSError:
        return False
    return any(line.split()[1] == "FLOCK" and f":{number} " in line for line in held.splitlines() if line)
