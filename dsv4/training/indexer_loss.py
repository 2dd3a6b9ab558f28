"""What trains the lightning indexer, and the recall of its choice (report 2.3.1; the method of V3.2).

The report gives no loss. Without one the indexer gets no gradient at all, because a choice has none. As in V3.2, its
scores learn the distribution of the main attention, on detached inputs: `dsv4.kernels.indexer_loss`, over all visible
entries in the dense warm-up, over the chosen ones in the sparse stage.

Legend: S considered entries.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from dsv4.kernels.indexer.reference import scores
from dsv4.kernels.indexer_loss import IndexedAttention, attention_target, entry_rows
from dsv4.model.transformer import Transformer
from dsv4.parameters import parameter_table


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
