"""Measure a model in a process of its own: to ready, to the first token, per token; processor, wall, memory, bytes.

    .venv/bin/python -m benchmarks.full_size /tmp/flash --expert-memory 4GiB 8GiB 12GiB --tokens 16

Every budget gets a new process. `cold` drops the folder's files from the page cache first, as far as the system lets
it. The rate of the disk is measured in the same process, on the largest file, by plain reads past the page cache.
Tokens are drawn at temperature 1, so that a model of holes does not repeat one token and its experts.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROMPT = (0, *range(3, 18))
BLOCK = 8 << 20
READ_BYTES = 1 << 30


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


def disk_rate(file: Path) -> float:
    """Bytes/s of sequential reads past the page cache, of at most READ_BYTES; 0 where the file system has no such."""
    import mmap

    with suppress(OSError), mmap.mmap(-1, BLOCK) as memory:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
        try:
            start, done = time.perf_counter(), 0
            while done < READ_BYTES and (got := os.preadv(descriptor, [memory], done)):
                done += got
            return done / (time.perf_counter() - start)
        finally:
            os.close(descriptor)
    return 0.0


def measure(folder: Path, budget: int | None, tokens: int, *, cold: bool) -> dict[str, Any]:
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
    engine.submit(list(PROMPT), SamplingParams(max_tokens=tokens + 1, temperature=1, seed=0))
    with timed(row, "first"):
        while not any(event.token is not None for _, event in engine.step()):
            pass
    before, row["tokens"] = expert_counts(), 0
    with timed(row, "decode"):
        while engine.busy:
            row["tokens"] += sum(event.token is not None for _, event in engine.step())
    after = expert_counts()
    row["tokens_per_s"] = tokens / row["decode_wall"]
    row["read_per_token"] = (after.bytes_read - before.bytes_read) / tokens
    row["hits"] = 1 - (after.missed - before.missed) / max(1, after.taken - before.taken)
    row["read_rate"] = (after.bytes_read - before.bytes_read) / row["decode_wall"]
    row["disk_rate"] = disk_rate(max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size))
    row["peak"], row["anonymous"] = peak_bytes(), memory_of("RssAnon")
    return row


def shown(row: dict[str, Any]) -> str:
    """A row as a line of a table."""
    budget = "none" if row["budget"] is None else f"{row['budget'] / 2**30:g} GiB"
    ready = [row[f"import_{kind}"] + row[f"load_{kind}"] for kind in ("cpu", "wall")]
    return (
        f"| {budget} | {'cold' if row['cold'] else 'warm'} | {ready[0]:.1f} / {ready[1]:.1f} "
        f"| {row['first_cpu']:.1f} / {row['first_wall']:.1f} | {row['tokens_per_s']:.2f} "
        f"| {row['decode_cpu'] / row['tokens']:.3f} | {row['read_per_token'] / 1e6:,.0f} MB "
        f"| {row['hits'] * 100:.0f} % | {row['read_rate'] / 1e6:,.0f} of {row['disk_rate'] / 1e6:,.0f} MB/s "
        f"| {row['peak'] / 2**30:.1f} GiB |"
    )


HEAD = (
    "| budget | page cache | ready, cpu / wall s | first token, cpu / wall s | tok/s | cpu s a token "
    "| read a token | hits | disk | peak |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--expert-memory", nargs="+", default=["none"], metavar="SIZE")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--row", action="store_true", help="measure here and write JSON")
    arguments = parser.parse_args()
    if arguments.row:
        (text,) = arguments.expert_memory
        budget = None if text == "none" else int(float(text.removesuffix("GiB")) * 2**30)
        print(json.dumps(measure(arguments.folder, budget, arguments.tokens, cold=arguments.cold)))
        return
    print(HEAD)
    for text in arguments.expert_memory:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.full_size", str(arguments.folder), "--row"]
        command += ["--expert-memory", text, "--tokens", str(arguments.tokens), *(["--cold"] * arguments.cold)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(shown(json.loads(done.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
