"""The loss of the lightning indexer, and the recall of its choice (report 2.3.1; the method of V3.2).

The report gives no loss. Without one the indexer gets no gradient at all, because a choice has none. As in V3.2, its
scores learn the distribution of the main attention: KL(p || softmax(I)), on detached inputs. p is the layer's own joint
softmax (window, compressed entries, sink), summed over heads and L1-normalised over compressed entries: all visible
ones in the dense warm-up, the chosen ones in the sparse stage.

Legend: T tokens, Q tokens of a block, H heads, C head dim, B sequences, P pages, W window rows, S considered entries,
J indexer heads, I indexer dim, M entry rows, K choices per token, R gathered rows (of the window).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dsv4.kernels.autograd import once_differentiable
from dsv4.kernels.indexer.reference import scores
from dsv4.model.step import IndexedAttention
from dsv4.model.transformer import Transformer
from dsv4.parameters import parameter_table

_VALUES = 1 << 23  # scores held at once: 32 MiB in fp32 a copy
_GATHER_ABOVE = 4  # entries visible per entry chosen above which gathering them beats masking all


@dataclass(frozen=True, slots=True)
class _IndexerBlock:
    """Queries of one sequence, and the entries they consider: the same for all queries, or a list for each."""

    query_Q: Tensor
    row: Tensor  # [S], or [Q, S] where every query has its own: rows of entries_MC and index_MI
    open_QS: Tensor  # which of them the query considers


def indexer_kl(seen: IndexedAttention) -> Tensor:
    """sum over queries of KL(p_t || softmax(I_t)), a scalar; queries without a visible entry add nothing.

    Considers what the attention read: the chosen entries, or all visible ones if it read them all. Never builds T x N
    values: gradients for the indexer's queries, weights and keys are made a block of queries at a time, in the forward
    pass. Differentiable once.
    """
    return _IndexerKL.apply(seen.index_TJI, seen.weight_TJ, seen.index_MI, seen)


class _IndexerKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index_TJI: Tensor, weight_TJ: Tensor, index_MI: Tensor, seen: IndexedAttention) -> Tensor:
        compute = torch.promote_types(index_TJI.dtype, torch.float32)
        total = torch.zeros((), dtype=compute, device=index_TJI.device)
        grads = [torch.zeros_like(t, dtype=compute) for t in (index_TJI, weight_TJ, index_MI)]
        for block in _blocks(seen):
            total += _add_block(block, seen, grads)
        ctx.save_for_backward(*(g.to(t.dtype) for g, t in zip(grads, (index_TJI, weight_TJ, index_MI), strict=True)))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return *(kept * grads[0].to(kept.dtype) for kept in ctx.saved_tensors), None


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


@dataclass(frozen=True, slots=True)
class Recall:
    """How much of dense attention the indexer's k entries find, averaged over sampled queries.

    entries: share of the k entries with the most attention that are among the chosen. mass: attention on the chosen /
    attention on those best k. Both 1 when no query sees more than k entries.
    """

    entries: float
    mass: float
    queries: int

    @classmethod
    def mean(cls, found: Iterable["Recall"]) -> "Recall":
        """Over all their queries."""
        measured = [r for r in found if r.queries]
        if not measured:
            return cls(1.0, 1.0, 0)
        queries = sum(r.queries for r in measured)
        entries, mass = (sum(getattr(r, name) * r.queries for r in measured) for name in ("entries", "mass"))
        return cls(entries / queries, mass / queries, queries)


@torch.no_grad()
def recall(seen: IndexedAttention, k: int, sample: int = 32) -> Recall:
    """Measured on at most `sample` queries that see more than k entries, spread evenly.

    The choice is the attention's own, or what the indexer would choose where the attention read everything.
    """
    eligible = (seen.visible_T > k).nonzero().flatten()
    if not len(eligible):
        return Recall(1.0, 1.0, 0)
    spread = torch.linspace(0, len(eligible) - 1, min(sample, len(eligible)), device=eligible.device)
    picked = eligible[spread.long()]
    found, mass = [], []
    for query_1 in picked.split(1):
        visible = int(seen.visible_T[query_1])
        row_S = entry_rows(query_1[0], visible, seen)
        open_1S = torch.ones(1, visible, dtype=torch.bool, device=row_S.device)
        p_S = attention_target(query_1, row_S, open_1S, seen)[0]
        if seen.chosen_TK is None:
            score_1S = scores(seen.index_TJI[query_1], seen.weight_TJ[query_1], seen.index_MI[row_S])
            chosen = score_1S[0].topk(k).indices
        else:
            chosen = seen.chosen_TK[query_1][0]
            chosen = chosen[chosen >= 0]
        best = p_S.topk(k).indices
        found.append(float(torch.isin(best, chosen).float().mean()))
        mass.append(float(p_S[chosen].sum() / p_S[best].sum()))
    return Recall(sum(found) / len(found), sum(mass) / len(mass), len(found))


def indexer_parameters(model: Transformer) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the warm-up trains: those of all indexers, including their compressors."""
    known = parameter_table(model.config)
    return [(name, p) for name, p in model.named_parameters() if known[name].indexer]


@contextmanager
def only_indexers(model: Transformer) -> Iterator[None]:
    """While entered, only parameters of indexers require gradients, so a forward pass keeps no graph of the rest."""
    keep = {id(p) for _, p in indexer_parameters(model)}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in keep]
    for p in frozen:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(True)
