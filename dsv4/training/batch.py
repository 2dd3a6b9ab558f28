"""A batch of packed documents, and the weight of each token as a target.

Legend: T tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents one after another; nothing crosses their borders (report 4.2: sample-level masking).

        Batch(tokens_T=tensor([5, 6, 7, 5, 9]), lengths=(3, 2), learn_T=tensor([1., 1, 1, 1, 1]))

    learn_T: how much each token counts when it is to be predicted, float or bool; 0 = context only. A document's first
    token is never predicted, nor, by the prediction block, its second. Raises ValueError for sizes that do not fit.
    """

    tokens_T: Tensor
    lengths: tuple[int, ...]
    learn_T: Tensor

    def __post_init__(self) -> None:
        tokens = self.tokens_T.shape[0]
        if self.tokens_T.dim() != 1 or self.learn_T.shape != self.tokens_T.shape:
            raise ValueError(
                f"tokens_T and learn_T must be [T], got {list(self.tokens_T.shape)} and {list(self.learn_T.shape)}"
            )
        if not self.lengths or min(self.lengths) < 1 or sum(self.lengths) != tokens:
            raise ValueError(f"lengths must be positive and add up to {tokens} tokens, got {self.lengths}")

    def to(self, device: torch.device) -> Self:
        """The same with all its tensors on a device; files stay where they are."""
        own: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: part.to(device) for name, part in own.items() if hasattr(part, "to")})

    def weights(self, ahead: int) -> Tensor:
        """For each token t how much predicting token t + ahead counts, [T] fp32; 0 where that is another document."""
        weight_T = torch.zeros(len(self.learn_T), dtype=torch.float32, device=self.learn_T.device)
        weight_T[:-ahead] = self.learn_T[ahead:].to(torch.float32)
        ends = torch.tensor(self.lengths, device=weight_T.device).cumsum(0)
        position_T = torch.arange(len(weight_T), device=weight_T.device)
        end_T = ends[torch.searchsorted(ends, position_T, right=True)]
        return weight_T.masked_fill_(position_T + ahead >= end_T, 0)


@dataclass(frozen=True, slots=True)
class Totals:
    """The divisors of the losses: sums over all micro-batches and ranks of one optimiser step.

    next, ahead: target weights of the next token and of the one after. tokens: all tokens.
    """

    next: float
    ahead: float
    tokens: float

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> "Totals":
        parts = [(float(b.weights(1).sum()), float(b.weights(2).sum()), len(b.tokens_T)) for b in batches]
        return cls(*(float(sum(column)) for column in zip(*parts, strict=True)))
