"""The indexer's KL and its gradients in plain torch, a block of queries at a time.

Legend: T tokens, Q tokens of a block, H heads, C head dim, B sequences, P pages, W window rows, S considered entries,
J indexer heads, I indexer dim, M entry rows, K choices per token, R gathered rows (of the window).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dsv4.kernels.indexer_loss.indexed import IndexedAttention

_VALUES = 1 << 23  # scores held at once: 32 MiB in fp32 a copy
_GATHER_ABOVE = 4  # entries visible per entry chosen above which gathering them beats masking all


@dataclass(frozen=True, slots=True)
class _IndexerBlock:
    """Queries of one sequence, and the entries they consider: the same for all queries, or a list for each."""

    query_Q: Tensor
    row: Tensor  # [S], or [Q, S] where every query has its own: rows of entries_MC and index_MI
    open_QS: Tensor  # which of them the query considers


def loss_and_gradients(seen: IndexedAttention) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and its gradients by the indexer's queries, head weights and keys, in fp32 (fp64 for fp64)."""
    compute = torch.promote_types(seen.index_TJI.dtype, torch.float32)
    total = torch.zeros((), dtype=compute, device=seen.index_TJI.device)
    leaves = seen.index_TJI, seen.weight_TJ, seen.index_MI
    d_index_TJI, d_weight_TJ, d_index_MI = grads = [torch.zeros_like(t, dtype=compute) for t in leaves]
    for block in _blocks(seen):
        total += _add_block(block, seen, grads)
    return total, d_index_TJI, d_weight_TJ, d_index_MI


def _add_block(block: _IndexerBlock, seen: IndexedAttention, grads: list[Tensor]) -> Tensor:
    """The block's loss; adds its gradients to those of queries, weights and keys."""
    target_QS = attention_target(block.query_Q, block.row, block.open_QS, seen)
    compute = target_QS.dtype
    q_QJI, weight_QJ = seen.index_TJI[block.query_Q].to(compute), seen.weight_TJ[block.query_Q].to(compute)
    keys = seen.index_MI[block.row].to(compute)  # [S, I] or [Q, S, I]
    dot_QJS = torch.matmul(q_QJI, keys.mT).relu_()
    score_QS = torch.bmm(weight_QJ[:, None], dot_QJS).squeeze(1).masked_fill_(~block.open_QS, float("-inf"))
    log_QS = score_QS.log_softmax(dim=1).masked_fill_(~block.open_QS, 0)
    any_Q1 = block.open_QS.any(dim=1, keepdim=True)
    kl = torch.where(target_QS > 0, target_QS * (target_QS.clamp(min=1e-38).log() - log_QS), 0).sum()
    # d KL / d score = softmax - p
    spread_QS = log_QS.exp_().masked_fill_(~block.open_QS, 0).sub_(target_QS).mul_(any_Q1)
    grads[1].index_add_(0, block.query_Q, torch.bmm(dot_QJS, spread_QS[..., None]).squeeze(2))
    back_QJS = (dot_QJS > 0).to(compute).mul_(spread_QS[:, None]).mul_(weight_QJ[..., None])
    grads[0].index_add_(0, block.query_Q, torch.matmul(back_QJS, keys))
    if block.row.dim() == 1:
        grads[2].index_add_(0, block.row, back_QJS.flatten(0, 1).mT @ q_QJI.flatten(0, 1))
    else:
        grads[2].index_add_(0, block.row.flatten(), torch.bmm(back_QJS.mT, q_QJI).flatten(0, 1))
    return kl


def attention_target(query_Q: Tensor, row: Tensor, open_QS: Tensor, seen: IndexedAttention) -> Tensor:
    """p_QS: what the main attention gives to each considered entry, all heads together, summing to 1 (0 if none is
    open). row: [S] or [Q, S] rows of the entries. The queries must be neighbours of one sequence, or few."""
    compute = torch.promote_types(seen.query_THC.dtype, torch.float32)
    q_QHC = seen.query_THC[query_Q].to(compute)
    bounds_Q2 = seen.keys.window_T2[query_Q]
    row_R = torch.arange(int(bounds_Q2.min()), int(bounds_Q2.max()), device=query_Q.device)
    near_QR = (row_R >= bounds_Q2[:, :1]) & (row_R < bounds_Q2[:, 1:])
    window_QHR = torch.matmul(q_QHC, seen.window_WC[row_R].to(compute).T) * seen.scale
    window_QHR.masked_fill_(~near_QR[:, None], float("-inf"))
    entry_QHS = torch.matmul(q_QHC, seen.entries_MC[row].to(compute).mT) * seen.scale
    entry_QHS.masked_fill_(~open_QS[:, None], float("-inf"))
    sink_QH1 = seen.sink_H.to(compute)[None, :, None].expand(len(query_Q), -1, 1)
    weight = torch.cat([window_QHR, entry_QHS, sink_QH1], dim=2).softmax(dim=2)
    p_QS = weight[..., len(row_R) : -1].sum(dim=1)
    return p_QS / p_QS.sum(dim=1, keepdim=True).clamp(min=1e-30)


def _blocks(seen: IndexedAttention) -> Iterator[_IndexerBlock]:
    device = seen.visible_T.device
    heads = seen.index_TJI.shape[1] + seen.query_THC.shape[1]
    for first, last in pairwise(seen.keys.runs):
        visible = int(seen.visible_T[last - 1])
        if not visible:
            continue
        chosen = 0 if seen.chosen_TK is None else seen.chosen_TK.shape[1]
        gather = chosen and visible > _GATHER_ABOVE * chosen
        size = max(1, _VALUES // (heads * (chosen if gather else visible)))
        for at in range(first, last, min(size, 256)):
            query_Q = torch.arange(at, min(at + min(size, 256), last), device=device)
            most = int(seen.visible_T[query_Q[-1]])
            if most:
                yield _block(query_Q, most, bool(gather), seen)


def _block(query_Q: Tensor, visible: int, gather: bool, seen: IndexedAttention) -> _IndexerBlock:
    chosen_QK = None if seen.chosen_TK is None else seen.chosen_TK[query_Q]
    if gather and chosen_QK is not None:
        first_Q1 = seen.pages.first_BP[seen.pages.sequence_T[query_Q]]
        page_QK, place_QK = _page(chosen_QK.clamp(min=0), seen)
        return _IndexerBlock(query_Q, first_Q1.gather(1, page_QK) + place_QK, chosen_QK >= 0)
    row_S = entry_rows(query_Q[0], visible, seen)
    entry_S = torch.arange(visible, device=query_Q.device)
    if chosen_QK is None:
        return _IndexerBlock(query_Q, row_S, entry_S < seen.visible_T[query_Q, None])
    open_QS = torch.zeros(len(query_Q), visible + 1, dtype=torch.bool, device=query_Q.device)
    open_QS.scatter_(1, chosen_QK.where(chosen_QK >= 0, visible), True)
    return _IndexerBlock(query_Q, row_S, open_QS[:, :visible])


def entry_rows(query: Tensor, visible: int, seen: IndexedAttention) -> Tensor:
    """Rows of the first `visible` entries of the query's sequence, [S]."""
    page_S, place_S = _page(torch.arange(visible, device=query.device), seen)
    return seen.pages.first_BP[seen.pages.sequence_T[query]][page_S] + place_S


def _page(entry: Tensor, seen: IndexedAttention) -> tuple[Tensor, Tensor]:
    return entry // seen.pages.entries_per_page, entry % seen.pages.entries_per_page
