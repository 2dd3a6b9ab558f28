"""Indexer scores and top-k in plain torch, a block of queries at a time.

Legend: T tokens, Q tokens of a block, J indexer heads, I indexer dim, M entry rows, N finished entries (of the
block's sequence), K choices per token.
"""

from itertools import pairwise

import torch
from torch import Tensor

from dsv4.kernels.rows import unpack_index
from dsv4.kernels.sparse_attention.keys import PageTable

_SCORES = 1 << 24  # scores per head block held at once: 64 MiB in fp32


def scores(q_QJI: Tensor, weight_QJ: Tensor, keys_NI: Tensor) -> Tensor:
    """I_{t,s} of eq. 16 for one sequence, [Q, N]; differentiable."""
    dot_JQN = torch.matmul(q_QJI.transpose(0, 1), keys_NI.T)
    return torch.einsum("jqn,qj->qn", dot_JQN.relu(), weight_QJ)


@torch.no_grad()
def index_topk(
    q_TJI: Tensor,
    weight_TJ: Tensor,
    keys_MI: Tensor,
    pages: PageTable,
    visible_T: Tensor,
    longest: int,
    k: int,
    runs: tuple[int, ...],
) -> Tensor:
    """See dsv4.kernels.indexer.index_topk."""
    width = min(k, longest)
    out_TK = torch.full((q_TJI.shape[0], width), -1, dtype=torch.int64, device=q_TJI.device)
    for first, last in pairwise(runs):
        seen = min(longest, int(visible_T[last - 1]))
        if not seen:
            continue
        entry_N = torch.arange(seen, device=q_TJI.device)
        if seen <= k:
            # everything visible is chosen: no scores needed
            out_TK[first:last, :seen] = torch.where(entry_N < visible_T[first:last, None], entry_N, -1)
            continue
        pages_N = pages.first_BP[pages.sequence_T[first], entry_N // pages.entries_per_page]
        keys_NI = keys_MI.index_select(0, pages_N + entry_N % pages.entries_per_page)
        if keys_NI.dtype == torch.uint8:
            keys_NI = unpack_index(keys_NI, q_TJI.shape[2])
        keys_NI = keys_NI.to(q_TJI.dtype)
        block = max(1, _SCORES // (seen * q_TJI.shape[1]))
        for at in range(first, last, block):
            part = slice(at, min(at + block, last))
            score_QN = scores(q_TJI[part], weight_TJ[part], keys_NI)
            score_QN = score_QN.masked_fill(entry_N >= visible_T[part, None], float("-inf"))
            out_TK[part, :width] = _best(score_QN, width)
    return out_TK


def _best(score_QN: Tensor, k: int) -> Tensor:
    """The k best columns per row, ascending; ties to the left; -inf never chosen (-1 in the free places)."""
    worst_Q1 = score_QN.topk(k, dim=1).values[:, -1:]
    above_QN = score_QN > worst_Q1
    tied_QN = (score_QN == worst_Q1) & (score_QN > float("-inf"))
    free_Q1 = k - above_QN.sum(dim=1, keepdim=True)
    kept_QN = above_QN | (tied_QN & (tied_QN.cumsum(dim=1) <= free_Q1))
    row, column = kept_QN.nonzero(as_tuple=True)
    place = kept_QN.cumsum(dim=1)[row, column] - 1
    out_QK = torch.full((score_QN.shape[0], k), -1, dtype=torch.int64, device=score_QN.device)
    out_QK[row, place] = column
    return out_QK
