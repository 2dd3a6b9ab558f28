"""A machine with memory nodes that exists in files only."""

from pathlib import Path

GIB = 2**30


def fake_machine(
    folder: Path,
    nodes: dict[int, str],
    *,
    free: int | dict[int, int] = 64 * GIB,
    siblings: dict[int, str] | None = None,
) -> Path:
    """The folder in place of /sys/devices/system. nodes: the processors of each node, as "0-3"; free: bytes of each."""
    for number, cpus in nodes.items():
        place = folder / "node" / f"node{number}"
        place.mkdir(parents=True)
        (place / "cpulist").write_text(f"{cpus}\n")
        kib = (free if isinstance(free, int) else free[number]) // 1024
        rows = {"MemTotal": 2 * kib, "MemFree": kib // 2, "Active(file)": kib // 4, "Inactive(file)": kib // 4}
        (place / "meminfo").write_text("".join(f"Node {number} {name}: {size} kB\n" for name, size in rows.items()))
    for cpu, together in (siblings or {}).items():
        place = folder / "cpu" / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{together}\n")
    return folder


def process_with(folder: Path, memory: str) -> Path:
    """The folder in place of /proc/self, of a process that may use the memory of these nodes."""
    folder.mkdir(exist_ok=True)
    (folder / "status").write_text(f"Name:\tpython\nMems_allowed:\t1\nMems_allowed_list:\t{memory}\n")
    return folder
