"""What every block of one forward pass reads: the tokens, their layout, rotations, the cache, and who listens.

T tokens, E experts, K experts per token.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dsv4.model.inputs import ModelCache, Sequences
from dsv4.model.rope import Rotations


class Observer(Protocol):
    """Training listens to the routers (balance loss, bias update); inference does not."""

    def routed(self, layer: int, score_TE: Tensor, ids_TK: Tensor) -> None:
        """Called once per MoE layer with all affinities (differentiable) and the chosen experts."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass over packed tokens. Nothing else reaches a block: there is no ambient state."""

    tokens_T: Tensor
    sequences: Sequences
    rotations: Rotations
    cache: ModelCache
    observer: Observer | None = None
