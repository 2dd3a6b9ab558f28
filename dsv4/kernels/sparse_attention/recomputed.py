"""Sparse attention for training: the backward pass computes the scores again, a block of queries at a time.

What is kept is what went in and came out, so memory grows with T, not with T times the rows read. Neighbouring queries
share most of their rows, so a block multiplies with the union of its windows and with one stretch of entries; rows that
a query may not read are masked. That holds for the indexer's choice too: up to tens of thousands of entries products
with all of them cost less than gathering the chosen ones.

T queries, Q queries of a block, H heads, Y = Q * H, C entry dim, W window rows, M entry rows, R rows of a block,
K chosen rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsv4.kernels.sparse_attention import cpu

if TYPE_CHECKING:
    from dsv4.kernels.sparse_attention import KeySet

_QUERIES = 64  # per block: more waste masked products, fewer waste calls


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries first..last of one sequence and the rows any of them reads."""

    queries: slice
    window: slice
    entries: slice | Tensor  # of the entry rows; an empty slice where there are none
    hidden_QR: Tensor  # rows (window, then entries) that a query does not read


def sparse_attention(
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor | None,
    keys: "KeySet",
    sink_H: Tensor,
    scale: float,
    rope_dim: int,
    native: bool = False,
) -> Tensor:
    """See dsv4.kernels.sparse_attention.sparse_attention; entries must be floats. `native`: both passes run in native
    code (`cpu.trainable` must say that they can)."""
    if entries_MC is None:
        entries_MC = window_WC.new_empty(0, window_WC.shape[1])
    return _Attention.apply(q_THC, window_WC, entries_MC, sink_H, keys, scale, rope_dim, native)  # pyrefly: ignore


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THC: Tensor,
        window_WC: Tensor,
        entries_MC: Tensor,
        sink_H: Tensor,
        keys: "KeySet",
        scale: float,
        rope_dim: int,
        native: bool,
    ) -> Tensor:
        ctx.keys, ctx.scale, ctx.native = keys, scale, native
        if native:
            o_THC = cpu.sparse_attention(q_THC, window_WC, entries_MC, keys, sink_H, scale, rope_dim)
        else:
            o_THC = torch.empty_like(q_THC)
            for block in _blocks(keys, entries_MC.shape[0]):
                kv_RC, weight_YR, _ = _weights(block, q_THC, window_WC, entries_MC, sink_H, scale)
                o_THC[block.queries] = (weight_YR @ kv_RC).view(-1, *q_THC.shape[1:]).to(q_THC.dtype)
        ctx.save_for_backward(q_THC, window_WC, entries_MC, sink_H, o_THC)
        return o_THC

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_THC: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore
        q_THC, window_WC, entries_MC, sink_H, o_THC = ctx.saved_tensors
        if ctx.native:
            grads = cpu.backward(grad_THC, o_THC, q_THC, window_WC, entries_MC, ctx.keys, sink_H, ctx.scale)
            return *grads, None, None, None, None
        heads, dim = q_THC.shape[1:]
        compute = torch.promote_types(q_THC.dtype, torch.float32)
        d_q, d_sink = torch.empty_like(q_THC), torch.zeros_like(sink_H, dtype=compute)
        d_window, d_entries = (torch.zeros_like(t, dtype=compute) for t in (window_WC, entries_MC))
        for block in _blocks(ctx.keys, entries_MC.shape[0]):
            kv_RC, weight_YR, sink_Y = _weights(block, q_THC, window_WC, entries_MC, sink_H, ctx.scale)
            do_YC = grad_THC[block.queries].reshape(-1, dim).to(compute)
            q_YC = q_THC[block.queries].reshape(-1, dim).to(compute)
            inner_Y = (do_YC * o_THC[block.queries].reshape(-1, dim).to(compute)).sum(dim=1)
            # softmax: d score = weight * (d weight - sum of weight * d weight), the sum being do . o
            d_score_YR = (do_YC @ kv_RC.T).sub_(inner_Y[:, None]).mul_(weight_YR).mul_(ctx.scale)
            d_q[block.queries] = (d_score_YR @ kv_RC).view(-1, heads, dim).to(q_THC.dtype)
            d_kv_RC = torch.addmm(weight_YR.T @ do_YC, d_score_YR.T, q_YC)
            d_sink -= (sink_Y * inner_Y).view(-1, heads).sum(dim=0)
            near = block.window.stop - block.window.start
            d_window[block.window] += d_kv_RC[:near]
            if isinstance(block.entries, slice):
                d_entries[block.entries] += d_kv_RC[near:]
            else:
                d_entries.index_add_(0, block.entries, d_kv_RC[near:])
        d_window, d_entries = d_window.to(window_WC.dtype), d_entries.to(entries_MC.dtype)
        return d_q, d_window, d_entries, d_sink.to(sink_H.dtype), None, None, None, None


def _weights(
    block: _Block, q_THC: Tensor, window_WC: Tensor, entries_MC: Tensor, sink_H: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows kv_RC, softmax weights weight_YR on them, and the sinks' share sink_Y."""
    compute = torch.promote_types(q_THC.dtype, torch.float32)
    kv_RC = torch.cat([window_WC[block.window], entries_MC[block.entries]]).to(compute)
    # NOTE: rows nobody in the block sees may hold anything, NaN included; zero them before the products
    kv_RC = kv_RC.masked_fill_(block.hidden_QR.all(dim=0)[:, None], 0)
    q_QHC = q_THC[block.queries].to(compute)
    score_YR = (q_QHC.flatten(0, 1) * scale) @ kv_RC.T
    score_QHR = score_YR.view(*q_QHC.shape[:2], -1).masked_fill_(block.hidden_QR[:, None], float("-inf"))
    sink_Y = sink_H.to(compute).repeat(q_QHC.shape[0])
    top_Y = torch.maximum(score_QHR.amax(dim=2).flatten(), sink_Y)
    weight_YR = score_YR.sub_(top_Y[:, None]).exp_()
    sink_Y = (sink_Y - top_Y).exp_()
    total_Y = weight_YR.sum(dim=1) + sink_Y
    return kv_RC, weight_YR.div_(total_Y[:, None]), sink_Y.div_(total_Y)


def _blocks(keys: "KeySet", entries: int) -> Iterator[_Block]:
    device = keys.window_T2.device
    for first, last in pairwise(keys.runs):
        for at in range(first, last, _QUERIES):
            queries = slice(at, min(at + _QUERIES, last))
            bounds_Q2 = keys.window_T2[queries]
            window = slice(int(bounds_Q2[:, 0].min()), int(bounds_Q2[:, 1].max()))
            row_R = torch.arange(window.start, window.stop, device=device)
            hidden_QR = (row_R < bounds_Q2[:, :1]) | (row_R >= bounds_Q2[:, 1:])
            found = _entries(queries, keys) if entries else None
            if found is None:
                yield _Block(queries, window, slice(0, 0), hidden_QR)
            else:
                yield _Block(queries, window, found[0], torch.cat([hidden_QR, found[1]], dim=1))


def _entries(queries: slice, keys: "KeySet") -> tuple[slice | Tensor, Tensor] | None:
    """The entry rows that some query of a block reads, and which each does not."""
    if keys.chosen_TK is not None:
        chosen_QK = keys.chosen_TK[queries]
        last = int(chosen_QK.max()) + 1 if chosen_QK.shape[1] else 0
        if not last:
            return None
        first = int(chosen_QK.where(chosen_QK >= 0, last).min())
        # one column more, for the places that hold no row
        hidden_QR = torch.ones(len(chosen_QK), last - first + 1, dtype=torch.bool, device=chosen_QK.device)
        hidden_QR.scatter_(1, (chosen_QK - first).where(chosen_QK >= 0, last - first), False)
        return slice(first, last), hidden_QR[:, :-1]
    if keys.prefix_T is None:
        return None
    assert keys.pages is not None
    prefix_Q = keys.prefix_T[queries]
    longest = int(prefix_Q.max())
    if not longest:
        return None
    entry_R = torch.arange(longest, device=prefix_Q.device)
    pages_P = keys.pages.first_BP[keys.pages.sequence_T[queries.start]]
    if longest <= keys.pages.entries_per_page:
        first = int(pages_P[0])
        rows: slice | Tensor = slice(first, first + longest)
    else:
        per_page = keys.pages.entries_per_page
        rows = pages_P[entry_R // per_page] + entry_R % per_page
    return rows, entry_R >= prefix_Q[:, None]
