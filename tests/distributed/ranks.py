"""Runs checks in several gloo processes on this machine: one start of the processes for many checks."""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

TIMEOUT = 60.0  # seconds without an answer from another rank
Check = Callable[[Path], None]


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "torch.distributed.fsdp", "torch.distributed.checkpoint", "dsv4.training.trainer"]
    )
    return context


def _join(rank: int, world: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=TIMEOUT), world, rank)


def _work(rank: int, world: int, folder: Path, checks: Sequence[Check]) -> None:
    import torch.distributed as dist

    _join(rank, world, folder)
    for check in checks:
        began = time.monotonic()
        place = folder / check.__name__
        place.mkdir(exist_ok=True)
        try:
            check(place)
        except BaseException:
            (folder / f"{check.__name__}.{rank}.failed").write_text(traceback.format_exc(), encoding="utf-8")
            raise SystemExit(1) from None  # the others notice the closed connection
        (folder / f"{check.__name__}.{rank}.passed").write_text(f"{time.monotonic() - began:.1f}", encoding="utf-8")
    dist.destroy_process_group()


@dataclass(frozen=True)
class Outcome:
    """What `run` left in its folder."""

    folder: Path
    world: int

    def expect(self, check: Check) -> None:
        """Fail with the tracebacks of all ranks unless the check passed on every one."""
        told = [self.folder / f"{check.__name__}.{rank}" for rank in range(self.world)]
        failed = [
            f"rank {r}: {Path(f'{t}.failed').read_text()}" for r, t in enumerate(told) if Path(f"{t}.failed").exists()
        ]
        if failed:
            pytest.fail("\n".join(failed), pytrace=False)
        if not all(Path(f"{t}.passed").exists() for t in told):
            pytest.fail(f"{check.__name__} did not finish on every rank: an earlier check failed", pytrace=False)


def run(world: int, folder: Path, checks: Sequence[Check], timeout: float = 240.0) -> Outcome:
    """Run the checks one after another in `world` processes that share a process group, until one fails."""
    context = _context()
    workers = [context.Process(target=_work, args=(rank, world, folder, checks)) for rank in range(world)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + timeout
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    for worker in workers:
        if worker.is_alive():
            worker.kill()
        worker.join()
    return Outcome(folder, world)
