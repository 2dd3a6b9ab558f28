"""Indexer scores and top-k in plain torch, a block of queries at a time.

T queries, Q queries of a block, N indexer heads, I indexer dim, S entries of the block's sequence, K entries kept.
"""

from itertools import pairwise

import torch
from torch import Tensor

from dsv4.kernels.rows import unpack_index
from dsv4.kernels.sparse_attention.keys import PageTable

_SCORES = 1 << 24  # scores per head block held at once: 64 MiB in fp32


def scores(q_QNI: Tensor, weight_QN: Tensor, keys_SI: Tensor) -> Tensor:
    """I_{t,s} of eq. 16 for one sequence, [Q, S]; differentiable."""
    dot_NQS = torch.matmul(q_QNI.transpose(0, 1), keys_SI.T)
    return torch.einsum("nqs,qn->qs", dot_NQS.relu(), weight_QN)


@torch.no_grad()
def index_topk(
    q_TNI: Tensor,
    weight_TN: Tensor,
    keys_MI: Tensor,
    pages: PageTable,
    visible_T: Tensor,
    longest: int,
    k: int,
    runs: tuple[int, ...],
) -> Tensor:
    """See dsv4.kernels.indexer.index_topk."""
    width = min(k, longest)
    out_TK = torch.full((q_TNI.shape[0], width), -1, dtype=torch.int64, device=q_TNI.device)
    for first, last in pairwise(runs):
        seen = min(longest, int(visible_T[last - 1]))
        if not seen:
            continue
        entry_S = torch.arange(seen, device=q_TNI.device)
        if seen <= k:
            # everything visible is chosen: no scores needed
            out_TK[first:last, :seen] = torch.where(entry_S < visible_T[first:last, None], entry_S, -1)
            continue
        pages_S = pages.first_BP[pages.sequence_T[first], entry_S // pages.entries_per_page]
        keys_SI = keys_MI.index_select(0, pages_S + entry_S % pages.entries_per_page)
        if keys_SI.dtype == torch.uint8:
            keys_SI = unpack_index(keys_SI, q_TNI.shape[2])
        keys_SI = keys_SI.to(q_TNI.dtype)
        block = max(1, _SCORES // (seen * q_TNI.shape[1]))
        for at in range(first, last, block):
            part = slice(at, min(at + block, last))
            score_QS = scores(q_TNI[part], weight_TN[part], keys_SI)
            score_QS = score_QS.masked_fill(entry_S >= visible_T[part, None], float("-inf"))
            out_TK[part, :width] = _best(score_QS, width)
    return out_TK


def _best(score_QS: Tensor, k: int) -> Tensor:
    """The k best columns per row, ascending; ties to the left; -inf never chosen (-1 in the free places)."""
    worst_Q1 = score_QS.topk(k, dim=1).values[:, -1:]
    above_QS = score_QS > worst_Q1
    tied_QS = (score_QS == worst_Q1) & (score_QS > float("-inf"))
    free_Q1 = k - above_QS.sum(dim=1, keepdim=True)
    kept_QS = above_QS | (tied_QS & (tied_QS.cumsum(dim=1) <= free_Q1))
    row, column = kept_QS.nonzero(as_tuple=True)
    place = kept_QS.cumsum(dim=1)[row, column] - 1
    out_QK = torch.full((score_QS.shape[0], k), -1, dtype=torch.int64, device=score_QS.device)
    out_QK[row, place] = column
    return out_QK
