"""Sparse attention in plain torch, a block of neighbouring queries at a time; the backward pass by hand.

Neighbouring queries share most of their window, so a block of Q queries reads the union of its windows (Q + window - 1
rows) with one product and a mask. HCA's prefix is shared by a whole block too. CSA's chosen rows differ per query:
without a gradient they are gathered; with one, a block multiplies with the stretch of entries that holds them all,
which costs less than gathering up to tens of thousands of entries. The backward pass computes the scores again and
keeps only inputs and outputs, so memory grows with T, not with T times the rows read.

Legend: T tokens, U blocks of tokens, Q tokens of a block, X places in all blocks (U * Q), H heads, Y = Q * H, C head
dim, W window rows, M entry rows, S rows of a block's window span, N finished entries (of a prefix), R gathered rows
(of a block), K choices per token, B sequences, P pages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dsv4.kernels.sparse_attention.keys import ChosenEntries, KeySet, Prefix, query_blocks
from dsv4.kernels.sparse_attention.reference import take

_QUERIES = 64  # of a block: a larger block computes more masked products, a smaller one needs more calls
_VALUES = 1 << 25  # gathered values held at once: 128 MiB in fp32


@dataclass(frozen=True, slots=True)
class _Group:
    """Some neighbouring blocks of equal size, none crossing a border between sequences."""

    token_UQ: Tensor  # query of each place; padding repeats the block's first
    real_X: Tensor | None  # places that are no padding; None = all
    first_U: Tensor  # the first query of each block


def _groups(keys: KeySet, dim: int, span_extra: int) -> list[_Group]:
    size = min(_QUERIES, max(last - first for first, last in pairwise(keys.runs)))
    blocks = list(query_blocks(keys.runs, size))
    chosen = keys.entries.rows_TK.shape[1] if isinstance(keys.entries, ChosenEntries) else 0
    longest = keys.entries.longest if isinstance(keys.entries, Prefix) else 0
    values = dim * (size + span_extra + longest + size * chosen)
    step = max(1, _VALUES // values)
    groups = []
    for at in range(0, len(blocks), step):
        bounds = torch.tensor(blocks[at : at + step], device=keys.window_T2.device)
        first_U, last_U = bounds.unbind(1)
        token_UQ = first_U[:, None] + torch.arange(size, device=first_U.device)
        real_UQ = token_UQ < last_U[:, None]
        token_UQ = torch.where(real_UQ, token_UQ, first_U[:, None])
        groups.append(_Group(token_UQ, None if bool(real_UQ.all()) else real_UQ.flatten(), first_U))
    return groups


def sparse_attention(
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor,
    keys: KeySet,
    sink_H: Tensor,
    scale: float,
    rope_dim: int,
) -> Tensor:
    """See dsv4.kernels.sparse_attention.sparse_attention. Scores and softmax in fp32 (fp64 for fp64 inputs)."""
    widest = int((keys.window_T2[:, 1] - keys.window_T2[:, 0]).max())
    outputs = [
        _attend(q_THC, window_WC, entries_MC, keys, sink_H, scale, rope_dim, group, widest)
        for group in _groups(keys, q_THC.shape[2], widest)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _window(window_WC: Tensor, keys: KeySet, group: _Group, widest: int) -> tuple[Tensor, Tensor]:
    """The union of the windows of each block, [U, S, C], and a mask of the rows that each query reads, [U, Q, S]."""
    bounds_UQ2 = keys.window_T2[group.token_UQ]
    span = widest + group.token_UQ.shape[1] - 1
    row_US = bounds_UQ2[:, 0, :1] + torch.arange(span, device=bounds_UQ2.device)
    seen_UQS = (row_US[:, None] >= bounds_UQ2[..., :1]) & (row_US[:, None] < bounds_UQ2[..., 1:])
    return take(window_WC, row_US, window_WC.shape[1], 0), seen_UQS


def _prefix(entries_MC: Tensor, read: Prefix, group: _Group, dim: int, rope_dim: int) -> tuple[Tensor, Tensor]:
    """The visible entries of the sequence of each block, [U, N, C], and a mask of those that each query reads, [U, Q,
    N]."""
    pages, visible_UQ = read.pages, read.visible_T[group.token_UQ]
    entry_N = torch.arange(read.longest, device=entries_MC.device)
    entry_UN = torch.where(entry_N < visible_UQ.amax(dim=1, keepdim=True), entry_N, 0)
    sequence_U1 = pages.sequence_T[group.first_U][:, None]
    first_UN = pages.first_BP[sequence_U1, entry_UN // pages.entries_per_page]
    row_UN = first_UN + entry_UN % pages.entries_per_page
    return take(entries_MC, row_UN, dim, rope_dim), entry_N < visible_UQ[..., None]


def _attend(
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor,
    keys: KeySet,
    sink_H: Tensor,
    scale: float,
    rope_dim: int,
    group: _Group,
    widest: int,
) -> Tensor:
    """The queries of one group: o [its queries, H, C]."""
    (blocks, size), (heads, dim) = group.token_UQ.shape, q_THC.shape[1:]
    compute = torch.promote_types(q_THC.dtype, torch.float32)
    flat_X = group.token_UQ.flatten()
    q_XHC = q_THC.index_select(0, flat_X).to(compute)
    kv_URC, seen_UQR = _window(window_WC, keys, group, widest)
    if isinstance(keys.entries, Prefix) and keys.entries.longest:
        kv_UNC, seen_UQN = _prefix(entries_MC, keys.entries, group, dim, rope_dim)
        kv_URC = torch.cat([kv_URC.to(compute), kv_UNC.to(compute)], dim=1)
        seen_UQR = torch.cat([seen_UQR, seen_UQN], dim=2)
    # NOTE: rows that no query of the block reads may hold anything, also NaN; they become zero before the products.
    kv_URC = kv_URC.to(compute).masked_fill(~seen_UQR.any(dim=1)[..., None], 0)
    q_UYC = q_XHC.view(blocks, size * heads, dim)
    score = torch.bmm(q_UYC, kv_URC.transpose(1, 2)).view(blocks, size, heads, -1) * scale
    scores = [score.masked_fill(~seen_UQR[:, :, None, :], float("-inf"))]
    kv_XKC = None
    if isinstance(keys.entries, ChosenEntries) and keys.entries.rows_TK.shape[1]:
        chosen_XK = keys.entries.rows_TK.index_select(0, flat_X)
        absent_XK = chosen_XK < 0
        kv_XKC = take(entries_MC, chosen_XK, dim, rope_dim).to(compute).masked_fill(absent_XK[..., None], 0)
        score_XHK = torch.bmm(q_XHC, kv_XKC.transpose(1, 2)) * scale
        score_XHK = score_XHK.masked_fill(absent_XK[:, None, :], float("-inf"))
        scores.append(score_XHK.view(blocks, size, heads, -1))
    sink = sink_H.to(compute).expand(blocks, size, heads).unsqueeze(-1)
    weight = torch.cat([*scores, sink], dim=-1).softmax(dim=-1)
    shared = kv_URC.shape[1]
    weight_UYR = weight[..., :shared].reshape(blocks, size * heads, shared)
    out_XHC = torch.bmm(weight_UYR, kv_URC).view(-1, heads, dim)
    if kv_XKC is not None:
        out_XHC = out_XHC + torch.bmm(weight[..., shared:-1].reshape(flat_X.shape[0], heads, -1), kv_XKC)
    if group.real_X is not None:
        out_XHC = out_XHC[group.real_X]
    return out_XHC.to(q_THC.dtype)


@dataclass(frozen=True, slots=True)
class _QueryBlock:
    """A range of queries of one sequence, and the rows that at least one of them reads."""

    queries: slice
    window: slice
    entries: slice | Tensor  # of the entry rows; an empty slice if there are none
    hidden_QR: Tensor  # rows (window, then entries) that a query does not read


def has_gradient(q_THC: Tensor, window_WC: Tensor, entries_MC: Tensor, *_: object) -> str | None:
    """The reason why these inputs have no gradient; None if they have one."""
    return "packed entries have no gradient" if entries_MC.dtype == torch.uint8 else None


def sparse_attention_dense(
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor,
    keys: KeySet,
    sink_H: Tensor,
    scale: float,
    rope_dim: int,
) -> Tensor:
    """As `sparse_attention`, by products with all rows of a block, as `backward` computes them; entries are floats."""
    o_THC = torch.empty_like(q_THC)
    for block in _blocks(keys, entries_MC.shape[0]):
        kv_RC, weight_YR, _ = _weights(block, q_THC, window_WC, entries_MC, sink_H, scale)
        o_THC[block.queries] = (weight_YR @ kv_RC).view(-1, *q_THC.shape[1:]).to(q_THC.dtype)
    return o_THC


def backward(
    gradients: tuple[Tensor],
    kept: Sequence[Tensor],
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor,
    keys: KeySet,
    sink_H: Tensor,
    scale: float,
    rope_dim: int,
) -> tuple[Tensor | None, ...]:
    """Gradients of queries, window rows, entries and sink, given that of the result; kept: the result."""
    (grad_THC,), (o_THC,) = gradients, kept
    heads, dim = q_THC.shape[1:]
    compute = torch.promote_types(q_THC.dtype, torch.float32)
    d_q, d_sink = torch.empty_like(q_THC), torch.zeros_like(sink_H, dtype=compute)
    d_window, d_entries = (torch.zeros_like(t, dtype=compute) for t in (window_WC, entries_MC))
    for block in _blocks(keys, entries_MC.shape[0]):
        kv_RC, weight_YR, sink_Y = _weights(block, q_THC, window_WC, entries_MC, sink_H, scale)
        do_YC = grad_THC[block.queries].reshape(-1, dim).to(compute)
        q_YC = q_THC[block.queries].reshape(-1, dim).to(compute)
        inner_Y = (do_YC * o_THC[block.queries].reshape(-1, dim).to(compute)).sum(dim=1)
        # softmax: d score = weight * (d weight - sum of weight * d weight), the sum being do . o
        d_score_YR = (do_YC @ kv_RC.T).sub_(inner_Y[:, None]).mul_(weight_YR).mul_(scale)
        d_q[block.queries] = (d_score_YR @ kv_RC).view(-1, heads, dim).to(q_THC.dtype)
        d_kv_RC = torch.addmm(weight_YR.T @ do_YC, d_score_YR.T, q_YC)
        d_sink -= (sink_Y * inner_Y).view(-1, heads).sum(dim=0)
        near = block.window.stop - block.window.start
        d_window[block.window] += d_kv_RC[:near]
        if isinstance(block.entries, slice):
            d_entries[block.entries] += d_kv_RC[near:]
        else:
            d_entries.index_add_(0, block.entries, d_kv_RC[near:])
    return d_q, d_window.to(window_WC.dtype), d_entries.to(entries_MC.dtype), None, d_sink.to(sink_H.dtype)


def _weights(
    block: _QueryBlock, q_THC: Tensor, window_WC: Tensor, entries_MC: Tensor, sink_H: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows kv_RC, softmax weights weight_YR on them, and the sinks' share sink_Y."""
    compute = torch.promote_types(q_THC.dtype, torch.float32)
    kv_RC = torch.cat([window_WC[block.window], entries_MC[block.entries]]).to(compute)
    # NOTE: rows that no query of the block reads may hold anything, also NaN; they become zero before the products
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


def _blocks(keys: KeySet, entries: int) -> Iterator[_QueryBlock]:
    device = keys.window_T2.device
    for first, last in query_blocks(keys.runs, _QUERIES):
        queries = slice(first, last)
        bounds_Q2 = keys.window_T2[queries]
        window = slice(int(bounds_Q2[:, 0].min()), int(bounds_Q2[:, 1].max()))
        row_R = torch.arange(window.start, window.stop, device=device)
        hidden_QR = (row_R < bounds_Q2[:, :1]) | (row_R >= bounds_Q2[:, 1:])
        found = _entries(queries, keys) if entries else None
        if found is None:
            yield _QueryBlock(queries, window, slice(0, 0), hidden_QR)
        else:
            yield _QueryBlock(queries, window, found[0], torch.cat([hidden_QR, found[1]], dim=1))


def _entries(queries: slice, keys: KeySet) -> tuple[slice | Tensor, Tensor] | None:
    """The entry rows that at least one query of a block reads, and a mask of those that each query does not read."""
    if isinstance(keys.entries, ChosenEntries):
        chosen_QK = keys.entries.rows_TK[queries]
        last = int(chosen_QK.max()) + 1 if chosen_QK.shape[1] else 0
        if not last:
            return None
        first = int(chosen_QK.where(chosen_QK >= 0, last).min())
        # one column more, for the places that hold no row
        hidden_QR = torch.ones(len(chosen_QK), last - first + 1, dtype=torch.bool, device=chosen_QK.device)
        hidden_QR.scatter_(1, (chosen_QK - first).where(chosen_QK >= 0, last - first), False)
        return slice(first, last), hidden_QR[:, :-1]
    if keys.entries is None:
        return None
    pages, visible_Q = keys.entries.pages, keys.entries.visible_T[queries]
    longest = int(visible_Q.max())
    if not longest:
        return None
    entry_R = torch.arange(longest, device=visible_Q.device)
    pages_P = pages.first_BP[pages.sequence_T[queries.start]]
    if longest <= pages.entries_per_page:
        first = int(pages_P[0])
        rows: slice | Tensor = slice(first, first + longest)
    else:
        per_page = pages.entries_per_page
        rows = pages_P[entry_R // per_page] + entry_R % per_page
    return rows, entry_R >= visible_Q[:, None]
