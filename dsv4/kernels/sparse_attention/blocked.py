"""Sparse attention in blocks of queries: windows and prefixes become small matrix products, only CSA gathers.

Neighbouring queries share most of their window, so a block of Q queries reads the union of its windows (Q + window - 1
rows) with one product and a mask. HCA's prefix is shared by a whole block too. CSA's chosen rows differ per query.

N blocks, Q queries per block, H heads, C entry dim, S rows of a block's window span, P prefix entries, K chosen rows.
"""

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dsv4.kernels.sparse_attention import KeySet

_QUERIES = 64  # per block: larger wastes masked work, smaller wastes calls
_VALUES = 1 << 25  # gathered values held at once: 128 MiB in fp32


def _blocks(runs: tuple[int, ...]) -> tuple[list[int], int]:
    """Starts of the query blocks, none crossing a border of `runs`, and the queries per block."""
    longest = max(last - first for first, last in pairwise(runs))
    size = min(_QUERIES, longest)
    return [start for first, last in pairwise(runs) for start in range(first, last, size)], size


def sparse_attention(q_THC: Tensor, kv_MC: Tensor, keys: "KeySet", sink_H: Tensor, scale: float) -> Tensor:
    """See dsv4.kernels.sparse_attention.sparse_attention. Scores and softmax in fp32 (fp64 for fp64 inputs)."""
    tokens, heads, dim = q_THC.shape
    starts, size = _blocks(keys.runs)
    ends = [*starts[1:], keys.runs[-1]]
    chosen = keys.chosen_TK.shape[1] if keys.chosen_TK is not None else 0
    window = int((keys.window_T2[:, 1] - keys.window_T2[:, 0]).max())
    span = window + size - 1
    per_block = dim * (span + keys.longest_prefix + size * chosen)
    group = max(1, _VALUES // max(per_block, 1))
    outputs = []
    for at in range(0, len(starts), group):
        part = starts[at : at + group]
        outputs.append(_attend(q_THC, kv_MC, keys, sink_H, scale, part, ends[at : at + group], size, span))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend(
    q_THC: Tensor,
    kv_MC: Tensor,
    keys: "KeySet",
    sink_H: Tensor,
    scale: float,
    starts: list[int],
    ends: list[int],
    size: int,
    span: int,
) -> Tensor:
    """The queries of some neighbouring blocks: o [their queries, H, C]."""
    device, (heads, dim) = q_THC.device, q_THC.shape[1:]
    compute = torch.promote_types(q_THC.dtype, torch.float32)
    start_N = torch.tensor(starts, device=device)
    end_N = torch.tensor(ends, device=device)
    token_NQ = start_N[:, None] + torch.arange(size, device=device)
    real_NQ = token_NQ < end_N[:, None]
    token_NQ = torch.where(real_NQ, token_NQ, start_N[:, None])
    flat_q = token_NQ.flatten()
    whole = len(starts) * size == ends[-1] - starts[0]  # no padding: a slice serves
    q_NQHC = q_THC[starts[0] : ends[-1]] if whole else q_THC.index_select(0, flat_q)
    q_NQHC = q_NQHC.to(compute).view(len(starts), size, heads, dim)

    window_NQ2 = keys.window_T2[token_NQ]
    base_N = window_NQ2[:, 0, 0]
    row_NS = base_N[:, None] + torch.arange(span, device=device)
    seen_NQS = (row_NS[:, None] >= window_NQ2[..., :1]) & (row_NS[:, None] < window_NQ2[..., 1:])
    rows, seen = [row_NS], [seen_NQS]
    if keys.prefix_T is not None and keys.longest_prefix:
        assert keys.pages is not None
        entry_P = torch.arange(keys.longest_prefix, device=device)
        prefix_NQ = keys.prefix_T[token_NQ]
        longest_N = prefix_NQ.amax(dim=1)
        entry_NP = torch.where(entry_P < longest_N[:, None], entry_P, 0)
        page_NP = entry_NP // keys.pages.entries_per_page
        sequence_N1 = keys.pages.sequence_T[start_N][:, None]
        first_NP = keys.pages.first_BP[sequence_N1, page_NP]
        rows.append(first_NP + entry_NP % keys.pages.entries_per_page)
        seen.append(entry_P < prefix_NQ[..., None])
    row_NR, seen_NQR = torch.cat(rows, dim=1), torch.cat(seen, dim=2)
    # NOTE: rows nobody in the block sees may hold anything, NaN included; zero them before the products.
    row_NR, dead_NR = row_NR.clamp(0, kv_MC.shape[0] - 1), ~seen_NQR.any(dim=1)
    kv_NRC = kv_MC.index_select(0, row_NR.flatten()).view(*row_NR.shape, dim).to(compute)
    kv_NRC = kv_NRC.masked_fill(dead_NR[..., None], 0)

    flat_NXC = q_NQHC.reshape(len(starts), size * heads, dim)
    score = torch.bmm(flat_NXC, kv_NRC.transpose(1, 2)).view(len(starts), size, heads, -1) * scale
    score = score.masked_fill(~seen_NQR[:, :, None, :], float("-inf"))
    shared = score.shape[-1]
    scores = [score]
    kv_XKC = None
    if keys.chosen_TK is not None and keys.chosen_TK.shape[1]:
        chosen_XK = keys.chosen_TK.index_select(0, flat_q)
        kv_XKC = kv_MC.index_select(0, chosen_XK.clamp(min=0).flatten()).view(*chosen_XK.shape, dim).to(compute)
        kv_XKC = kv_XKC.masked_fill((chosen_XK < 0)[..., None], 0)
        q_XHC = q_NQHC.reshape(-1, heads, dim)
        score_XHK = torch.bmm(q_XHC, kv_XKC.transpose(1, 2)) * scale
        score_XHK = score_XHK.masked_fill((chosen_XK < 0)[:, None, :], float("-inf"))
        scores.append(score_XHK.view(len(starts), size, heads, -1))
    sink = sink_H.to(compute).expand(len(starts), size, heads).unsqueeze(-1)
    weight = torch.cat([*scores, sink], dim=-1).softmax(dim=-1)
    flat_weight = weight[..., :shared].reshape(len(starts), size * heads, shared)
    out = torch.bmm(flat_weight, kv_NRC).view(-1, heads, dim)
    if kv_XKC is not None:
        out = out + torch.bmm(weight[..., shared:-1].reshape(out.shape[0], heads, -1), kv_XKC)
    out = out if whole else out[real_NQ.flatten().nonzero().squeeze(1)]
    return out.to(q_THC.dtype)
