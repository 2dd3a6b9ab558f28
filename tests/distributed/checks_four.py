"""Products of two kinds of parallelism on four processes."""

from pathlib import Path

import torch
import torch.distributed as dist

from dsv4.training.settings import Scale
from tests.distributed.whole_runs import INTEGERS, everywhere_equal, foresee, full, lean, same_losses


def shards_and_experts(folder: Path) -> None:
    run = same_losses(Scale(fsdp=2, expert=2), folder)
    for name, p in run.model.named_parameters():
        if ".ffn.experts." not in name:
            assert everywhere_equal(full(p)), name


def shards_and_experts_in_integers(folder: Path) -> None:
    same_losses(Scale(fsdp=2, expert=2), folder, **INTEGERS)


def shards_and_documents_routed_ahead(folder: Path) -> None:
    run = same_losses(Scale(fsdp=2, context=2), folder, foresee)
    assert run.recovery.anticipating(run.step)


def experts_and_documents(folder: Path) -> None:
    same_losses(Scale(expert=2, context=2), folder)


def a_rank_without_tokens_for_its_experts(folder: Path) -> None:
    """All tokens want the experts of one rank; the other gets rows only from layers routed by a table."""
    run = same_losses(Scale(expert=2, fsdp=2), folder, lean)
    moved = [p for name, p in run.model.named_parameters() if ".ffn.experts." in name and "layers.2." in name]
    state = run.optimizers.state_dict()["ownedmatrices"]
    idle = run.team.mesh.place("expert") == 1
    assert any("layers.2.ffn.experts" in name for name in state) != idle
    assert all(torch.isfinite(p).all() for p in moved)
    dist.barrier()
