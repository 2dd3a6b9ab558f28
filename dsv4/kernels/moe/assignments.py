"""Tokens sorted by the experts they chose: each expert gets its rows together, each token gets its sum back.

Legend: T tokens, D hidden size, E experts, K choices per token, A assignments sorted by expert.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Assignments:
    """The token of each sorted assignment, and the places of each token's assignments.

    order_A: the assignment t * K + k at each sorted place. place_A: the sorted place of each assignment. counts_E: how
    many assignments each expert has. Within an expert they keep the order of the tokens.
    """

    order_A: Tensor
    place_A: Tensor
    counts_E: Tensor
    k: int

    @classmethod
    def of(cls, ids_TK: Tensor, experts: int) -> "Assignments":
        """ids_TK: the experts of each token, int64 in 0..experts - 1."""
        ids_A = ids_TK.flatten()
        order_A = ids_A.argsort(stable=True)
        place_A = torch.empty_like(order_A)
        place_A[order_A] = torch.arange(order_A.numel(), device=order_A.device)
        return cls(order_A, place_A, torch.bincount(ids_A, minlength=experts), ids_TK.shape[1])

    def rows(self, x_TD: Tensor) -> Tensor:
        """The token's row of every assignment, x_AD."""
        return x_TD.index_select(0, self.order_A // self.k)

    def weights(self, weight_TK: Tensor) -> Tensor:
        """The routing weight of every assignment, weight_A."""
        return weight_TK.flatten().index_select(0, self.order_A)

    def spans(self) -> Iterator[tuple[int, slice]]:
        """Experts that have tokens, and their places."""
        first = 0
        for expert, count in enumerate(self.counts_E.tolist()):
            if count:
                yield expert, slice(first, first + count)
            first += count

    def sums(self, y_AD: Tensor) -> Tensor:
        """Each token's rows added in the order of its list of experts, y_TD."""
        y_TKD = y_AD.index_select(0, self.place_A).view(-1, self.k, y_AD.shape[1])
        # NOTE: not sum(dim=1): its order of additions depends on the shape
        return reduce(torch.add, y_TKD.unbind(1))
