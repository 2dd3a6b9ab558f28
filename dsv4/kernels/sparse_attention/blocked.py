"""Sparse attention in blocks of queries: windows and prefixes become small matrix products, only CSA gathers.

Neighbouring queries share most of their window, so a block of Q queries reads the union of its windows (Q + window - 1
rows) with one product and a mask. HCA's prefix is shared by a whole block too. CSA's chosen rows differ per query.

N blocks, Q queries per block, X = N * Q, H heads, C entry dim, S rows of a block's window span, P prefix entries,
R = S + P rows a block shares, K chosen rows per query.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsv4.kernels.sparse_attention.reference import take

if TYPE_CHECKING:
    from dsv4.kernels.sparse_attention import KeySet

_QUERIES = 64  # per block: larger wastes masked work, smaller wastes calls
_VALUES = 1 << 25  # gathered values held at once: 128 MiB in fp32


@dataclass(frozen=True, slots=True)
class _Group:
    """Some neighbouring blocks of equal size, none crossing a border between sequences."""

    token_NQ: Tensor  # query of each place; padding repeats the block's first
    real_X: Tensor | None  # places that are no padding; None = all
    first_N: Tensor  # the first query of each block


def _groups(keys: "KeySet", dim: int, span_extra: int) -> list[_Group]:
    longest = max(last - first for first, last in pairwise(keys.runs))
    size = min(_QUERIES, longest)
    blocks = [(at, min(at + size, last)) for first, last in pairwise(keys.runs) for at in range(first, last, size)]
    chosen = keys.chosen_TK.shape[1] if keys.chosen_TK is not None else 0
    values = dim * (size + span_extra + keys.longest_prefix + size * chosen)
    step = max(1, _VALUES // values)
    groups = []
    for at in range(0, len(blocks), step):
        bounds = torch.tensor(blocks[at : at + step], device=keys.window_T2.device)
        first_N, last_N = bounds.unbind(1)
        token_NQ = first_N[:, None] + torch.arange(size, device=first_N.device)
        real_NQ = token_NQ < last_N[:, None]
        token_NQ = torch.where(real_NQ, token_NQ, first_N[:, None])
        groups.append(_Group(token_NQ, None if bool(real_NQ.all()) else real_NQ.flatten(), first_N))
    return groups


def sparse_attention(
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor | None,
    keys: "KeySet",
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


def _window(window_WC: Tensor, keys: "KeySet", group: _Group, widest: int) -> tuple[Tensor, Tensor]:
    """The union of each block's windows, [N, S, C], and which of it each query sees, [N, Q, S]."""
    bounds_NQ2 = keys.window_T2[group.token_NQ]
    span = widest + group.token_NQ.shape[1] - 1
    row_NS = bounds_NQ2[:, 0, :1] + torch.arange(span, device=bounds_NQ2.device)
    seen_NQS = (row_NS[:, None] >= bounds_NQ2[..., :1]) & (row_NS[:, None] < bounds_NQ2[..., 1:])
    return take(window_WC, row_NS, window_WC.shape[1], 0), seen_NQS


def _prefix(entries_MC: Tensor, keys: "KeySet", group: _Group, dim: int, rope_dim: int) -> tuple[Tensor, Tensor]:
    """The visible entries of each block's sequence, [N, P, C], and which of them each query sees, [N, Q, P]."""
    assert keys.prefix_T is not None
    assert keys.pages is not None
    entry_P = torch.arange(keys.longest_prefix, device=entries_MC.device)
    prefix_NQ = keys.prefix_T[group.token_NQ]
    entry_NP = torch.where(entry_P < prefix_NQ.amax(dim=1, keepdim=True), entry_P, 0)
    sequence_N1 = keys.pages.sequence_T[group.first_N][:, None]
    first_NP = keys.pages.first_BP[sequence_N1, entry_NP // keys.pages.entries_per_page]
    row_NP = first_NP + entry_NP % keys.pages.entries_per_page
    return take(entries_MC, row_NP, dim, rope_dim), entry_P < prefix_NQ[..., None]


def _attend(
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor | None,
    keys: "KeySet",
    sink_H: Tensor,
    scale: float,
    rope_dim: int,
    group: _Group,
    widest: int,
) -> Tensor:
    """The queries of one group: o [its queries, H, C]."""
    (blocks, size), (heads, dim) = group.token_NQ.shape, q_THC.shape[1:]
    compute = torch.promote_types(q_THC.dtype, torch.float32)
    flat_X = group.token_NQ.flatten()
    q_XHC = q_THC.index_select(0, flat_X).to(compute)
    kv_NRC, seen_NQR = _window(window_WC, keys, group, widest)
    if keys.prefix_T is not None and keys.longest_prefix:
        assert entries_MC is not None
        kv_NPC, seen_NQP = _prefix(entries_MC, keys, group, dim, rope_dim)
        kv_NRC = torch.cat([kv_NRC.to(compute), kv_NPC.to(compute)], dim=1)
        seen_NQR = torch.cat([seen_NQR, seen_NQP], dim=2)
    # NOTE: rows nobody in the block sees may hold anything, NaN included; zero them before the products.
    kv_NRC = kv_NRC.to(compute).masked_fill(~seen_NQR.any(dim=1)[..., None], 0)
    q_NYC = q_XHC.view(blocks, size * heads, dim)
    score = torch.bmm(q_NYC, kv_NRC.transpose(1, 2)).view(blocks, size, heads, -1) * scale
    scores = [score.masked_fill(~seen_NQR[:, :, None, :], float("-inf"))]
    kv_XKC = None
    if keys.chosen_TK is not None and keys.chosen_TK.shape[1]:
        assert entries_MC is not None
        chosen_XK = keys.chosen_TK.index_select(0, flat_X)
        absent_XK = chosen_XK < 0
        kv_XKC = take(entries_MC, chosen_XK, dim, rope_dim).to(compute).masked_fill(absent_XK[..., None], 0)
        score_XHK = torch.bmm(q_XHC, kv_XKC.transpose(1, 2)) * scale
        score_XHK = score_XHK.masked_fill(absent_XK[:, None, :], float("-inf"))
        scores.append(score_XHK.view(blocks, size, heads, -1))
    sink = sink_H.to(compute).expand(blocks, size, heads).unsqueeze(-1)
    weight = torch.cat([*scores, sink], dim=-1).softmax(dim=-1)
    shared = kv_NRC.shape[1]
    weight_NYR = weight[..., :shared].reshape(blocks, size * heads, shared)
    out_XHC = torch.bmm(weight_NYR, kv_NRC).view(-1, heads, dim)
    if kv_XKC is not None:
        out_XHC = out_XHC + torch.bmm(weight[..., shared:-1].reshape(flat_X.shape[0], heads, -1), kv_XKC)
    if group.real_X is not None:
        out_XHC = out_XHC[group.real_X]
    return out_XHC.to(q_THC.dtype)
