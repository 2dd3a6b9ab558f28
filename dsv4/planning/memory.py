"""Free memory, and sizes as users write them. No torch."""

import re
from pathlib import Path
from typing import Literal

from dsv4.files import size_text

_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "tb": 10**12}
OVERCOMMIT = 1.25  # largest ratio of a budget to free memory: memory is committed when it is first written
ALL: Literal["all"] = "all"  # of the routed experts: no limit
CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that can be allocated without swapping: the free memory of the system, or less under the limit of a
    container; 8 GiB where the system reports neither."""
    known = _known_free()
    return 8 * 2**30 if known is None else known


def check_budget(name: str, budget: int, free: int | None = None) -> None:
    """Raises ValueError with both numbers for a budget of more than `OVERCOMMIT` times the free memory (default: what
    the system reports). name: of the budget, for the message."""
    where = " (in the machine, or under the limit of its container)" if free is None else ""
    free = _known_free() if free is None else free
    if free is not None and budget > OVERCOMMIT * free:
        raise ValueError(
            f"{name} must be at most {size_text(int(OVERCOMMIT * free))}, {OVERCOMMIT} times the {size_text(free)} of "
            f"memory that is free{where}, got {size_text(budget)}"
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
            root, limit, used = CGROUP, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, used = CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        here = root / path.lstrip("/")
        for folder in (here, *here.parents):
            room = _room(folder, limit, used)
            rooms += [] if room is None else [room]
            if folder == root:
                break
    return min(rooms, default=None)


def _room(group: Path, limit: str, used: str) -> int | None:
    """Bytes a group may still take. Files that the system keeps in memory count as used, but it drops them for others:
    after a download into a container they fill its limit."""
    try:
        most, taken = (group / limit).read_text().strip(), (group / used).read_text().strip()
    except OSError:
        return None
    if not most.isdigit() or int(most) >= 2**60:
        return None
    return max(0, int(most) - int(taken) + min(_droppable(group), int(taken)))


def _droppable(group: Path) -> int:
    """Bytes of files that a group keeps in memory."""
    try:
        rows = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
    except OSError:
        return 0
    sizes = {row[0].removeprefix("total_"): int(row[1]) for row in rows if len(row) == 2}
    return sizes.get("inactive_file", 0) + sizes.get("active_file", 0)


def total_memory() -> int | None:
    """Bytes of memory of the machine, whatever a container may use of it; None where the system does not tell."""
    return _system("MemTotal:")


def limited() -> bool:
    """Whether the limit of a container leaves less than the machine has free."""
    room, free = _container_room(), _system("MemAvailable:")
    return room is not None and (free is None or room < free)


def parse_memory(text: int | str, name: str = "memory", free: int | None = None) -> int:
    """Bytes of "8GiB", "500 MB", "50%" (of `free`, default the free memory) or a number. Raises ValueError with `name`
    for anything else."""
    if isinstance(text, int) and text > 0:
        return text
    text = str(text)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*|%)\s*", text)
    if match and match[2] == "%" and 0 < float(match[1]) <= 100:
        return int((free_memory() if free is None else free) * float(match[1]) / 100)
    if match and match[2].lower() in _UNITS and float(match[1]) > 0:
        return int(float(match[1]) * _UNITS[match[2].lower()])
    raise ValueError(f"{name} must be a size like 8GiB or a share of free memory like 50%, got {text!r}")
