"""Checkpoints written by some ranks and read by others, and ranks that die."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dsv4.distributed import checkpoint
from dsv4.distributed.failure import RankLost
from dsv4.training.settings import Scale
from dsv4.training.states import latest_of_ranks
from tests.distributed.whole_runs import expected_lines, trainer_of

RUN = {"save_seconds": 1e9, "recall_every": 4, "recall_queries": 2}


def whole_state(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, put together by one process."""
    return checkpoint.read(path)


def write(scale: Scale, folder: Path, steps: int = 4) -> None:
    """Train a little and save."""
    run = trainer_of(scale, folder)
    for _ in range(steps):
        run.advance()
    run.save()


def read_back(scale: Scale, folder: Path, into: Path) -> None:
    """Load with another layout and save again elsewhere: every bit must have survived both ways."""
    run = trainer_of(scale, folder)
    run.folder = into
    run.save()
    first, second = latest_of_ranks(folder), latest_of_ranks(into)
    assert first is not None
    assert second is not None
    if dist.get_rank() == 0:
        before, after = whole_state(first), whole_state(second)
        assert before.keys() == after.keys()
        assert {name.split(".")[0] for name in before} >= {"model", "adamw", "muon"}
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]), name
        one, other = checkpoint.header(first), checkpoint.header(second)
        one.pop("seconds"), other.pop("seconds")
        assert one == other
    dist.barrier()


def going_back_restores_every_bit(folder: Path) -> None:
    """What happens after a spike, on shards: the state in memory comes back, and the steps after it are the same."""
    run = trainer_of(Scale(fsdp=2), folder)
    run.advance()
    kept, step = run._capture(), run.step
    first = run.advance()
    run._restore(kept)
    run.step = step
    second = run.advance()
    assert first.losses == second.losses
    assert first.grad_norm == second.grad_norm


def resumed_is_uninterrupted(folder: Path) -> None:
    """Two layouts in turn, and the losses of one process."""
    (folder / "alone").mkdir(exist_ok=True)
    expected: list[dict[str, Any]] = expected_lines(2, folder / "alone", {})
    lines: list[dict[str, Any]] = []
    for scale, stop in ((Scale(fsdp=2), 3), (Scale(expert=2), None)):
        run = trainer_of(scale, folder)
        assert run.step == len(lines)
        for line in run.run():
            lines.append(line.to_dict())
            if len(lines) == stop:
                run.save()
                break
    assert len(lines) == len(expected)
    for ours, theirs in zip(lines, expected, strict=True):
        assert abs(ours["next"] - theirs["next"]) < 1e-5
    assert 1 <= len(list(folder.glob("state-*"))) <= 2
    if dist.get_rank() == 0:  # a cut file: the checkpoint before is the newest
        newest = latest_of_ranks(folder)
        assert newest is not None
        file = max(newest.glob("*.distcp"), key=lambda f: f.stat().st_size)
        os.truncate(file, file.stat().st_size * 7 // 10)
        assert latest_of_ranks(folder) != newest


def one_is_killed(folder: Path) -> None:
    """Rank 1 dies in a step; rank 0 says so soon. Ends both processes' part in the group."""
    run = trainer_of(Scale(fsdp=2), folder)
    for _ in range(2):
        run.advance()
    run.save()
    if dist.get_rank() == 1:
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(RankLost, match="rank 0 of 2: another rank has died"):
        next(run.run())
    assert time.monotonic() - began < 30
    (folder / "told").touch()


def goes_on_after_the_kill(folder: Path) -> None:
    """The run of `one_is_killed` goes on from its checkpoint to the losses of one process."""
    place = folder.parents[1] / "killed" / one_is_killed.__name__
    run = trainer_of(Scale(fsdp=2), place)
    assert run.step == 2
    lines = [line.to_dict() for line in run.run()]
    (folder / "alone").mkdir(exist_ok=True)
    for ours, theirs in zip(lines, expected_lines(2, folder / "alone", {})[2:], strict=True):
        assert abs(ours["next"] - theirs["next"]) < 1e-5


def one_writes(folder: Path) -> None:
    write(Scale(), folder)


def four_read_what_one_wrote(folder: Path) -> None:
    read_back(Scale(fsdp=2, expert=2), folder.parents[1] / "one" / one_writes.__name__, folder)


def four_write(folder: Path) -> None:
    write(Scale(fsdp=2, expert=2), folder)


def two_read_what_four_wrote(folder: Path) -> None:
    read_back(Scale(expert=2), folder.parents[1] / "four" / four_write.__name__, folder)


def two_write(folder: Path) -> None:
    write(Scale(fsdp=2), folder)


def one_reads_what_two_wrote(folder: Path) -> None:
    read_back(Scale(), folder.parents[1] / "two" / two_write.__name__, folder)
