"""How fast this machine reads memory and a folder's disk, measured in a second, and what that allows a model."""

import mmap
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from dsv4.planning.plan import EnginePlan

SECONDS = 0.5  # for each of the two
MEMORY_BYTES = 256 << 20  # far more than caches hold
BLOCK = 4 << 20  # of a read from disk: a third of an expert of Flash
READERS = 4
LEAST_FILE = 64 << 20  # a smaller file tells nothing about a disk


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second. disk: None where it was not measured. elsewhere: it is the disk on which torch is installed,
    because the model's files are not here yet."""

    memory: float
    disk: float | None
    elsewhere: bool = False

    def most_tokens(self, plan: EnginePlan) -> float | None:
        """Tokens per second of one sequence if reading weights were all the work; None where a disk is needed that was
        not measured."""
        seconds = plan.read_per_token / self.memory
        if plan.disk_per_token:
            if self.disk is None:
                return None
            seconds += plan.disk_per_token / self.disk
        return 1 / seconds


def measure(file: Path | None, free: int) -> Rates:
    """Read memory with torch's threads, and pieces of `file` past the system's cache, for a second together. Without a
    file, torch's largest library stands in for it."""
    read = _largest_library() if file is None else file
    return Rates(_memory(min(MEMORY_BYTES, free // 16)), None if read is None else disk_rate(read), file is None)


def _largest_library() -> Path | None:
    """A large file that is on every machine, to measure a disk by."""
    libraries = (Path(torch.__file__).parent / "lib").glob("*torch*")
    return max(libraries, key=lambda file: file.stat().st_size, default=None)


def _memory(size: int) -> float:
    """Of a plain sum; the largest of several."""
    x, best, end = torch.ones(max(1, size // 4)), 0.0, time.perf_counter() + SECONDS
    while not best or time.perf_counter() < end:
        start = time.perf_counter()
        x.sum()
        best = max(best, x.nbytes / (time.perf_counter() - start))
    return best


def disk_rate(file: Path, seconds: float = SECONDS) -> float | None:
    """Of random pieces as large as a matrix of an expert, read by a few threads. None for a small file, and where the
    system offers no reads past its cache."""
    direct = getattr(os, "O_DIRECT", None)
    size = file.stat().st_size
    if direct is None or size < LEAST_FILE:
        return None
    try:
        handle = os.open(file, os.O_RDONLY | direct)
    except OSError:  # a file system in memory
        return None
    try:
        start = time.perf_counter()
        with ThreadPoolExecutor(READERS) as pool:
            done = list(pool.map(lambda seed: _read(handle, size, seed, start + seconds), range(READERS)))
        return sum(done) / (time.perf_counter() - start)
    except OSError:
        return None
    finally:
        os.close(handle)


def _read(handle: int, size: int, seed: int, end: float) -> int:
    """Bytes read from random blocks until `end`. Direct reads need memory at a page's border: an anonymous map."""
    rng, done = random.Random(seed), 0
    with closing(mmap.mmap(-1, BLOCK)) as room:
        while not done or time.perf_counter() < end:
            done += os.preadv(handle, [room], rng.randrange(size // BLOCK) * BLOCK)
    return done
