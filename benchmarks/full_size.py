"""Measure a model in a process of its own: to ready, to the first token, per token; processor, wall, memory, bytes.

    .venv/bin/python -m benchmarks.full_size /tmp/flash --expert-memory 4GiB 8GiB 12GiB --tokens 16
    .venv/bin/python -m benchmarks.full_size /tmp/mid --expert-memory 5% 50% 100% none --settle 64 --tokens 64 --cold

Every budget gets a new process; a share is of all routed experts. `cold` drops the folder's files from the page cache
first, as far as the system lets it. `settle`: tokens that are decoded before the measured ones. The rate of the disk is
measured in the same process, in turns with decoding: large sequential reads of the same files past the page cache, by
as many threads as gave most; a row says so where the file system offers no such reads. Tokens are drawn at temperature
1, so that a model of holes does not repeat one token and its experts.
"""

import argparse
import errno
import itertools
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

PROMPT = (0, *range(3, 18))
BLOCK = 8 << 20
ROUNDING = 64 << 10  # at most, what a place of the arena is larger than an expert
READERS = (1, 4)  # threads of sequential reads; the faster ones are the disk's rate
TURN = 0.5  # seconds of decoding between two measurements of the disk, which take as long together


@contextmanager
def timed(row: dict[str, Any], name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    row[f"{name}_wall"], row[f"{name}_cpu"] = time.perf_counter() - wall, time.process_time() - cpu


def drop_from_page_cache(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory_of(kind: str) -> int:
    """Resident bytes of this process: RssFile (files' pages), RssAnon (the others). Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


class Disk:
    """Sequential reads of a folder's files, one after another, past the page cache. direct: whether the file system
    offers such reads; if not, the page cache may serve them."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        self.direct = all(map(_reads_direct, files))
        flags = os.O_RDONLY | (os.O_DIRECT if self.direct else 0)
        self._files = [os.open(file, flags) for file in files]
        sizes = [os.fstat(file).st_size // BLOCK for file in self._files]
        blocks = [(file, at * BLOCK) for file, size in zip(self._files, sizes, strict=True) for at in range(size)]
        self._next = itertools.cycle(blocks)
        self._rooms = [mmap.mmap(-1, BLOCK) for _ in range(max(READERS))]
        for room in self._rooms:
            room.madvise(mmap.MADV_HUGEPAGE)
        self._pool = ThreadPoolExecutor(max(READERS))
        self.read = dict.fromkeys(READERS, 0)
        self.seconds = dict.fromkeys(READERS, 0.0)

    def measure(self, seconds: float) -> None:
        """Read for about this long, for an equal time with each number of threads."""
        for readers in READERS:
            start = time.perf_counter()
            end = start + seconds / len(READERS)
            self.read[readers] += sum(self._pool.map(self._until, repeat(end), self._rooms[:readers]))
            self.seconds[readers] += time.perf_counter() - start

    def _until(self, end: float, room: mmap.mmap) -> int:
        done = 0
        while time.perf_counter() < end:
            file, offset = next(self._next)
            done += os.preadv(file, [room], offset)
        return done

    def rates(self) -> dict[int, float]:
        """Bytes/s by number of threads."""
        return {readers: self.read[readers] / self.seconds[readers] for readers in READERS}


def _reads_direct(file: Path) -> bool:
    """Whether a file can be read past the page cache. Some file systems refuse to open it so, others to read."""
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        return False
    try:
        handle = os.open(file, os.O_RDONLY | flag)
        try:
            with closing(mmap.mmap(-1, mmap.PAGESIZE)) as room:
                os.preadv(handle, [room], 0)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return False
    return True


def budget_of(text: str, folder: Path) -> int | None:
    """Bytes of "4GiB" or of "25%" of the routed experts; None for "none"."""
    if text == "none":
        return None
    if not text.endswith("%"):
        return int(float(text.removesuffix("GiB")) * 2**30)
    import dsv4.checkpoint
    from dsv4.config import ModelConfig

    config, reader = ModelConfig.from_file(folder), dsv4.checkpoint.CheckpointReader(folder)
    experts = sum(reader.stored_bytes(name) for name in reader.names() if ".ffn.experts." in name)
    borders = config.num_hidden_layers * config.n_routed_experts * ROUNDING
    return int((experts + borders) * float(text.removesuffix("%")) / 100)


def decode(engine: Any, tokens: int, disk: Disk | None) -> dict[str, float]:
    """Seconds of that many tokens, wall and processor. The rate of the disk is measured between them."""
    spent, cpu, turn, done = 0.0, 0.0, 0.0, 0
    while done < tokens:
        wall, processor = time.perf_counter(), time.process_time()
        done += sum(event.token is not None for _, event in engine.step())
        took = time.perf_counter() - wall
        spent, cpu, turn = spent + took, cpu + time.process_time() - processor, turn + took
        if disk is not None and (turn >= TURN or done >= tokens):
            disk.measure(min(turn, 2 * TURN))
            turn = 0.0
    return {"decode_wall": spent, "decode_cpu": cpu}


def measure(folder: Path, budget: int | None, tokens: int, settle: int, *, cold: bool) -> dict[str, Any]:
    """One row: seconds, tokens/s, bytes of experts read a token, hit rate, peak memory."""
    if cold:
        drop_from_page_cache(folder)
    row: dict[str, Any] = {"budget": budget, "cold": cold}
    with timed(row, "import"):
        import dsv4
        from dsv4.bench.memory import peak_bytes
        from dsv4.generation import SamplingParams
        from dsv4.kernels.moe.residency import expert_counts
    with timed(row, "load"):
        model = dsv4.load(
            folder,
            "release",
            expert_memory="all" if budget is None else budget,
            context_length=4096,
            memory=1 << 30,
            sequences=1,
            draft="none",
        )
    row["loaded_file_bytes"] = memory_of("RssFile")
    engine = model.engine
    engine.ends = frozenset()
    engine.submit(list(PROMPT), SamplingParams(max_tokens=settle + tokens + 1, temperature=1, seed=0))
    with timed(row, "first"):
        while not any(event.token is not None for _, event in engine.step()):
            pass
    decode(engine, settle, None)
    disk = Disk(folder)
    before, row["tokens"] = expert_counts(), tokens
    row |= decode(engine, tokens, disk)
    after = expert_counts()
    read, used = after.bytes_read - before.bytes_read, max(1, after.taken - before.taken)
    missed, foreseen = after.missed - before.missed, after.foreseen - before.foreseen
    row["tokens_per_s"] = tokens / row["decode_wall"]
    row["read_per_token"] = read / tokens
    row["hits"], row["foreseen"] = 1 - (missed + foreseen) / used, foreseen / max(1, missed + foreseen)
    largest = max(block.ffn.weights().largest_expert() for block in model.model.blocks)
    row["needed_per_token"] = (missed + foreseen) * largest / tokens
    row["busy"] = (after.reading - before.reading) / 1e9 / row["decode_wall"]
    row["waiting"] = (after.waiting - before.waiting) / 1e9 / row["decode_wall"]
    row["read_rate"] = read / row["decode_wall"]
    row["disk_rates"], row["direct"] = disk.rates(), disk.direct
    row["disk_rate"] = max(row["disk_rates"].values())
    row["peak"], row["anonymous"] = peak_bytes(), memory_of("RssAnon")
    return row


def shown(row: dict[str, Any]) -> str:
    """A row as a line of a table."""
    budget = "none" if row["budget"] is None else f"{row['budget'] / 2**30:g} GiB"
    ready = [row[f"import_{kind}"] + row[f"load_{kind}"] for kind in ("cpu", "wall")]
    share = 100 * row["read_rate"] / row["disk_rate"]
    return (
        f"| {budget} | {'cold' if row['cold'] else 'warm'} | {ready[0]:.1f} / {ready[1]:.1f} "
        f"| {row['first_cpu']:.1f} / {row['first_wall']:.1f} | {row['tokens_per_s']:.2f} "
        f"| {row['decode_cpu'] / row['tokens']:.3f} | {row['read_per_token'] / 1e6:,.0f} MB, "
        f"{row['needed_per_token'] / 1e6:,.0f} needed | {row['hits'] * 100:.0f} % | {row['foreseen'] * 100:.0f} % "
        f"| {row['read_rate'] / 1e6:,.0f} of {row['disk_rate'] / 1e6:,.0f} MB/s "
        f"({share:.0f} %, needed {share * row['needed_per_token'] / max(1, row['read_per_token']):.0f} %)"
        f"{'' if row['direct'] else ', THE PAGE CACHE MAY SERVE THE DISK'} "
        f"| {row['busy'] * 100:.0f} %, {row['waiting'] * 100:.0f} % waited for | {row['peak'] / 2**30:.1f} GiB |"
    )


HEAD = (
    "| budget | page cache | ready, cpu / wall s | first token, cpu / wall s | tok/s | cpu s a token | read a token "
    "| in memory | of the rest foreseen | disk | reading | peak |\n|---|---|" + 10 * "---:|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--expert-memory", nargs="+", default=["none"], metavar="SIZE")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--settle", type=int, default=0)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--row", action="store_true", help="measure here and write JSON")
    arguments = parser.parse_args()
    if arguments.row:
        (text,) = arguments.expert_memory
        budget = budget_of(text, arguments.folder)
        print(json.dumps(measure(arguments.folder, budget, arguments.tokens, arguments.settle, cold=arguments.cold)))
        return
    print(HEAD)
    for text in arguments.expert_memory:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.full_size", str(arguments.folder), "--row"]
        command += ["--expert-memory", text, "--tokens", str(arguments.tokens), "--settle", str(arguments.settle)]
        command += ["--cold"] * arguments.cold
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(shown(json.loads(done.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
