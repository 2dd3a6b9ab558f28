"""The memory nodes (NUMA) of this machine, and what of them this process may use. No torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from dsv4.planning.memory import CGROUP

SYSTEM = Path("/sys/devices/system")
PROCESS = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class MemoryNode:
    """number: the system's. cores: the processors of each core that this process may use; none where it may use only
    the memory. free: bytes, files that the system keeps in memory among them."""

    number: int
    cores: tuple[tuple[int, ...], ...]
    free: int

    @property
    def cpus(self) -> tuple[int, ...]:
        """The processors, one of each core first."""
        ranks = range(max(map(len, self.cores), default=0))
        return tuple(core[rank] for rank in ranks for core in self.cores if rank < len(core))


@dataclass(frozen=True, slots=True)
class Topology:
    """nodes: those whose memory this process may use; none where the system has no such list (macOS). quota: processors
    that the quota of a container allows; None = no quota."""

    nodes: tuple[MemoryNode, ...] = ()
    quota: float | None = None


def read_topology(
    system: Path = SYSTEM, process: Path = PROCESS, group: Path = CGROUP, allowed: frozenset[int] | None = None
) -> Topology:
    """The nodes below `system`, without processors and memory that the cpuset of `process` forbids. allowed: the
    processors that this process may use (default: as the system says). group: of its quota."""
    if allowed is None:
        allowed = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
    memory = _allowed_memory(process)
    nodes = []
    for folder in sorted((system / "node").glob("node[0-9]*"), key=lambda folder: int(folder.name[4:])):
        number, free = int(folder.name[4:]), _free(folder)
        if not free or (memory is not None and number not in memory):
            continue
        cpus = sorted(numbers_of(_text(folder / "cpulist")) & allowed)
        nodes.append(MemoryNode(number, _cores(system, cpus), free))
    return Topology(tuple(nodes), cpu_quota(group))


def numbers_of(text: str) -> frozenset[int]:
    """The numbers of a list like "0-3,8,10-11", as the system writes processors and nodes.

    >>> sorted(numbers_of("0-2,5"))
    [0, 1, 2, 5]
    """
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def cpu_quota(group: Path) -> float | None:
    """Processors that a container may use, by the quota of its control group (v2, v1); None without a quota."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (group / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return int(quota) / int(period) if quota.isdigit() and int(period) else None


def _cores(system: Path, cpus: list[int]) -> tuple[tuple[int, ...], ...]:
    """These processors by core; each is a core where the system does not tell."""
    cores: dict[int, list[int]] = {}
    for cpu in cpus:
        siblings = numbers_of(_text(system / "cpu" / f"cpu{cpu}" / "topology" / "thread_siblings_list"))
        cores.setdefault(min(siblings, default=cpu), []).append(cpu)
    return tuple(map(tuple, cores.values()))


def _free(node: Path) -> int:
    """Bytes of a node that can be used without swapping; 0 for one without memory."""
    sizes = {}
    for line in _text(node / "meminfo").splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 4 and words[3].isdigit():
            sizes[words[2]] = int(words[3]) * 1024
    return sum(sizes.get(name, 0) for name in ("MemFree", "Active(file)", "Inactive(file)"))


def _allowed_memory(process: Path) -> frozenset[int] | None:
    """The nodes whose memory a process may use; None where the system does not tell."""
    for line in _text(process / "status").splitlines():
        if line.startswith("Mems_allowed_list:"):
            return numbers_of(line.partition(":")[2])
    return None


def _text(file: Path) -> str:
    """A file of the system; empty where there is none."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
