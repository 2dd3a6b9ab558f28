"""Sums of gradients over all ranks, for shards, copies and experts.

Every rank's loss is its share of one loss that is divided by sums over all ranks, so gradients are added, never
averaged. A parameter is held in one of three ways: a shard of it (fsdp), all of it on every rank, or - a routed
expert - all of it on the ranks with the same place along the expert axis.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dsv4.distributed.collectives import sum_flat
from dsv4.distributed.mesh import EXPERT_COPIES, SHARD_COPIES, WHOLE_COPIES, Mesh
from dsv4.parameters import is_expert
from dsv4.training.clipping import check_largest, norms, scale_down
from dsv4.training.param_groups import Named


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor; writing to it writes to the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def copies(name: str, p: Tensor) -> tuple[str, ...]:
    """Axes along which other ranks hold the same numbers of this parameter."""
    if is_expert(name):
        return EXPERT_COPIES
    return SHARD_COPIES if isinstance(p, DTensor) else WHOLE_COPIES


def by_copies(named: Named) -> dict[tuple[str, ...], list[nn.Parameter]]:
    """Parameters that require gradients, by the axes of their copies; the keys are the same on all ranks."""
    kinds: dict[tuple[str, ...], list[nn.Parameter]] = {
        axes: [] for axes in (SHARD_COPIES, WHOLE_COPIES, EXPERT_COPIES)
    }
    for name, p in named:
        if p.requires_grad:
            kinds[copies(name, p)].append(p)
    return kinds


@torch.no_grad()
def sum_gradients(named: Named, mesh: Mesh) -> None:
    """Add the gradients of all copies. One that is missing counts as zero; one that no rank has stays missing, so that
    an optimiser leaves the parameter alone, as it would in one process. Gradients of shards were added along fsdp
    when they were made."""
    for axes, params in by_copies(named).items():
        if not params or mesh.size(*axes) == 1:
            continue
        group = mesh.group(*axes)
        present = torch.tensor([p.grad is not None for p in params], dtype=torch.int32, device=mesh.device)
        dist.all_reduce(present, op=dist.ReduceOp.MAX, group=group)
        summed = [p for p, there in zip(params, present.tolist(), strict=True) if there]
        for p in summed:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for grad in _grads(summed):
            by_dtype.setdefault(grad.dtype, []).append(grad)
        for dtype in sorted(by_dtype, key=str):
            sum_flat(by_dtype[dtype], group)


@torch.no_grad()
def clip(named: Named, largest: float, mesh: Mesh) -> float:
    """`clip_gradients` over all ranks: returns the norm of the whole model's gradient before, the same number on every
    rank. A norm that is not finite is returned and nothing is scaled."""
    check_largest(largest)
    kinds = by_copies(named)
    squares = torch.zeros(3, dtype=torch.float64, device=mesh.device)
    for i, axes in enumerate((SHARD_COPIES, WHOLE_COPIES, EXPERT_COPIES)):
        grads = _grads(kinds[axes])
        if grads:
            squares[i] = norms(grads).double().square().sum()
    # each rank holds another part of shards along fsdp, of experts along expert
    for i, axis in ((0, "fsdp"), (2, "expert")):
        dist.all_reduce(squares[i : i + 1], group=mesh.group(axis))
    norm = float(squares.sum().sqrt())
    for params in kinds.values():
        scale_down(_grads(params), norm, largest)
    return norm


def _grads(params: Sequence[nn.Parameter]) -> list[Tensor]:
    return [local(p.grad) for p in params if p.grad is not None]
