"""Exchanging rows between ranks, with gradients. Sums are made locally in the order of ranks, so they do not depend on
how a library reduces (report 3.4: all-to-all, then a local sum).

Legend: R rows of this rank, X numbers of a row.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsv4.kernels.autograd import once_differentiable


def exchange(rows_RX: Tensor, send: Sequence[int], receive: Sequence[int], group: Any) -> Tensor:
    """Send `send[p]` rows to each rank p, in order; returns the `receive[p]` rows of each rank p, in order.

    Counts may be 0. What p is told to receive from here must be what is sent. Differentiable in the rows: gradients
    go back the same way. Every rank of the group must call it, and its backward pass.
    """
    return _Exchange.apply(rows_RX, list(send), list(receive), group)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RX: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return _all_to_all(rows_RX, send, receive, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _all_to_all(grads[0], ctx.receive, ctx.send, ctx.group), None, None, None


def _all_to_all(rows_RX: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
    rows_RX = rows_RX.contiguous()
    if sum(send) != rows_RX.shape[0]:
        raise ValueError(f"exchange: {rows_RX.shape[0]} rows, but the counts to send add up to {sum(send)}")
    out = rows_RX.new_empty(sum(receive), *rows_RX.shape[1:])
    dist.all_to_all_single(out, rows_RX, receive, send, group=group)
    return out


def gather_rows(rows_RX: Tensor, counts: Sequence[int], group: Any) -> Tensor:
    """The rows of all ranks one after another on every rank; `counts[p]` rows come from rank p.

    Differentiable: a rank's rows get the sum of what all ranks' copies got, added in the order of ranks.
    """
    return _Gather.apply(rows_RX, list(counts), group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RX: Tensor, counts: list[int], group: Any) -> Tensor:
        ctx.counts, ctx.group, ctx.rows = counts, group, rows_RX.shape[0]
        if counts[dist.get_rank(group)] != ctx.rows:
            raise ValueError(f"gather_rows: {ctx.rows} rows, but {counts[dist.get_rank(group)]} were announced")
        most = max(counts)
        # equal parts are what every backend gathers
        padded = rows_RX.new_zeros(most, *rows_RX.shape[1:])
        padded[: ctx.rows] = rows_RX
        parts = [torch.empty_like(padded) for _ in counts]
        if most:
            dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad, ranks = grads[0], len(ctx.counts)
        parts = _all_to_all(grad, ctx.counts, [ctx.rows] * ranks, ctx.group).view(ranks, ctx.rows, *grad.shape[1:])
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total, None, None


@torch.no_grad()
def sum_flat(tensors: Sequence[Tensor], group: Any, bucket: int = 1 << 24) -> None:
    """Add tensors of one dtype over a group, in place, as few large messages of about `bucket` numbers."""
    waiting: list[Tensor] = []
    size = 0
    for i, tensor in enumerate(tensors):
        waiting.append(tensor)
        size += tensor.numel()
        if size >= bucket or i + 1 == len(tensors):
            flat = torch.cat([t.reshape(-1) for t in waiting])
            dist.all_reduce(flat, group=group)
            for t, part in zip(waiting, flat.split([t.numel() for t in waiting]), strict=True):
                t.copy_(part.view_as(t))
            waiting, size = [], 0
