"""Expert balance: the rule that moves biases, the small loss per sequence, and a measure of the load (report 2.1).

Legend: T tokens, E experts, K choices per token, B sequences (documents).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.model.transformer import Transformer

SPEED = 0.001  # report: bias update speed

ExpertLoads = dict[int, Tensor]  # by layer: how many tokens each expert got, load_E


def expert_load(ids_TK: Tensor, experts: int) -> Tensor:
    """How many tokens each expert got, load_E fp32."""
    return torch.bincount(ids_TK.flatten(), minlength=experts).to(torch.float32)


def add_load(into: ExpertLoads, more: Mapping[int, Tensor]) -> None:
    """Add the counts of another micro-batch."""
    for layer, load_E in more.items():
        into[layer] = into[layer] + load_E if layer in into else load_E


def max_violation(load_E: Tensor) -> float:
    """MaxVio: largest load / mean load - 1; 0 is perfect balance, E / K - 1 everything on the same K experts."""
    return float(load_E.max() / load_E.mean().clamp(min=1e-30) - 1)


def load_shares(load: Mapping[int, Tensor]) -> dict[str, list[float]]:
    """By layer, the load of each expert over the mean load, with two places: for logs."""
    shares = {layer: load_E / load_E.mean().clamp(min=1e-30) for layer, load_E in load.items()}
    return {str(layer): [round(share, 2) for share in share_E.tolist()] for layer, share_E in sorted(shares.items())}


@torch.no_grad()
def move_biases(model: Transformer, load: Mapping[int, Tensor], speed: float = SPEED) -> None:
    """After a step: add `speed` to the bias of each expert that got less than its share, take it from the others.

    load: counts of all ranks. Layers without a bias (hash routing) are passed over.
    """
    for block in model.blocks:
        bias_E, load_E = block.ffn.gate.bias, load.get(block.ffn.index)
        if bias_E is not None and load_E is not None:
            bias_E.add_(speed * (load_E.mean() - load_E).sign())


def sequence_balance(score_TE: Tensor, ids_TK: Tensor, sequence_T: Tensor, documents: int) -> Tensor:
    """sum over documents of tokens * sum_e f_e P_e, one layer, not yet divided by the number of tokens.

    As V3: f_e = E / (K tokens) * how often expert e was chosen, P_e = mean of its normalised affinity, each within one
    document - one training sample, since packed samples do not see each other. 1 per token is perfect balance. "Chosen"
    means chosen with the biases: f_e counts the real load. Differentiable in score_TE.
    """
    share_BE = affinity_share(score_TE, sequence_T, documents)
    choices = Choices.of(ids_TK, sequence_T, documents, score_TE.shape[1])
    return (choices.frequency(ids_TK.shape[1], share_BE.dtype) * share_BE).sum()


@dataclass(frozen=True, slots=True)
class Choices:
    """How often the tokens of each document chose each expert, and how many tokens it has."""

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
