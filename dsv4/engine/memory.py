"""The division of a memory budget into pages, running sequences and snapshots, before anything is allocated."""

import re
from dataclasses import dataclass
from pathlib import Path

from dsv4.cache import CacheSpec

_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "tb": 10**12}
DEFAULT_SHARE = "50%"
OVERCOMMIT = 1.25  # largest ratio of a budget to free memory: memory is committed when it is first written


_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that can be allocated without swapping: the free memory of the system, or less under the limit of a
    container; 8 GiB where the system reports neither."""
    known = _known_free()
    return 8 * 2**30 if known is None else known


def check_budget(name: str, budget: int) -> None:
    """Raises ValueError with both numbers for a budget of more than `OVERCOMMIT` times the free memory, where the
    system reports it. name: of the budget, for the message."""
    free = _known_free()
    if free is not None and budget > OVERCOMMIT * free:
        raise ValueError(
            f"{name} must be at most {_size(int(OVERCOMMIT * free))}, {OVERCOMMIT} times the {_size(free)} of memory "
            f"that is free (in the machine, or under the limit of its container), got {_size(budget)}"
        )


def _known_free() -> int | None:
    known = [size for size in (_system("MemAvailable:"), _container_room()) if size is not None]
    return min(known, default=None)


def _system(field: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None


def _container_room() -> int | None:
    """Bytes left under the limits of the control groups (v2, v1) of this process and their parents; None without a
    limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    rooms = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, limit, used = _CGROUP, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, used = _CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        here = root / path.lstrip("/")
        for folder in (here, *here.parents):
            room = _room(folder / limit, folder / used)
            rooms += [] if room is None else [room]
            if folder == root:
                break
    return min(rooms, default=None)


def _room(limit: Path, used: Path) -> int | None:
    try:
        most, taken = limit.read_text().strip(), used.read_text().strip()
    except OSError:
        return None
    return max(0, int(most) - int(taken)) if most.isdigit() and int(most) < 2**60 else None


def parse_memory(text: str) -> int:
    """Bytes of "8GiB", "500 MB" or "50%" (of free memory). Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*|%)\s*", text)
    if match and match[2] == "%" and 0 < float(match[1]) <= 100:
        return int(free_memory() * float(match[1]) / 100)
    if match and match[2].lower() in _UNITS and float(match[1]) > 0:
        return int(float(match[1]) * _UNITS[match[2].lower()])
    raise ValueError(f"memory must be a size like 8GiB or a share of free memory like 50%, got {text!r}")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The sizes that fit a budget. tokens: cached source tokens of all sequences and kept prefixes together."""

    tokens: int
    sequences: int
    snapshots: int
    bytes: int


def plan_memory(spec: CacheSpec, budget: int, *, context_length: int, sequences: int, snapshots: int) -> MemoryPlan:
    """Divide a budget: slots first, then pages for the rest, at most as many as all sequences and an equal number of
    kept prefixes need at full context.

    At most a third of the budget goes into snapshots. Raises ValueError naming both sizes when one sequence of
    `context_length` tokens does not fit.
    """
    slot, page = spec.slot_bytes(), max(1, spec.page_bytes())
    least = spec.total_bytes(spec.pages_for(context_length), 1)
    if least > budget:
        raise ValueError(
            f"one sequence of {context_length:,} tokens needs {_size(least)} of cache, the memory budget is "
            f"{_size(budget)}: raise --memory or lower --context"
        )
    spare = budget - least
    extra = min(sequences - 1, spare // 3 // slot)
    kept = min(snapshots, spare // 3 // slot)
    left = budget - (1 + extra + kept) * slot
    pages = min(left // page, 2 * sequences * spec.pages_for(context_length))
    return MemoryPlan(pages * spec.page_tokens, 1 + extra, kept, spec.total_bytes(pages, 1 + extra + kept))


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
