"""How evenly a document's tokens chose their experts: what a balance loss is made of (report 2.1, V3's sequence loss).

Legend: T tokens, E experts, K choices per token, B sequences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Choices:
    """What the documents' tokens chose: how often each expert, and how many tokens there are."""

    chosen_BE: Tensor
    tokens_B1: Tensor

    @classmethod
    def of(cls, ids_TK: Tensor, sequence_T: Tensor, documents: int, experts: int) -> "Choices":
        """sequence_T: which document a token belongs to."""
        at = (sequence_T[:, None] * experts + ids_TK).flatten()
        chosen_BE = torch.bincount(at, minlength=documents * experts).view(documents, experts)
        return cls(chosen_BE, torch.bincount(sequence_T, minlength=documents)[:, None])

    def frequency(self, k: int, dtype: torch.dtype) -> Tensor:
        """f_BE = E / (K tokens) * times chosen; 1 everywhere is perfect balance. Documents need at least a token."""
        return self.chosen_BE.to(dtype) * self.chosen_BE.shape[1] / (k * self.tokens_B1)


def affinity_share(score_TE: Tensor, sequence_T: Tensor, documents: int) -> Tensor:
    """Sum over each document's tokens of their normalised affinities, share_BE. Differentiable."""
    share_TE = score_TE / score_TE.sum(dim=1, keepdim=True)
    return share_TE.new_zeros(documents, score_TE.shape[1]).index_add(0, sequence_T, share_TE)
