"""The inputs that all blocks of one forward pass share: tokens, layout, rotations, cache, and observer.

Legend: T tokens, E experts, K choices per token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dsv4.kernels.indexer_loss import IndexedAttention
from dsv4.model.inputs import ModelCache, Sequences
from dsv4.model.rope import Rotations


class Observer(Protocol):
    """Receives the routers' choices: training uses them (balance loss, bias update), inference does not."""

    def routed(self, layer: int, score_TE: Tensor, ids_TK: Tensor) -> None:
        """Called once per MoE layer with all affinities (differentiable) and the chosen experts."""
        ...


@dataclass(frozen=True, slots=True)
class Regime:
    """How a training pass differs from inference; the default is inference.

    dense: CSA layers read every visible entry instead of the indexer's choice. routes: expert ids_TK by layer, used in
    place of the learned choice; gate weights stay the current ones, made of all affinities, so routers learn. entries:
    entry numbers_TK by CSA layer, -1 = none, used in place of the indexer's choice. In both, a row of -1 alone leaves
    the choice to the model. indexed: called once per CSA layer with the inputs of the indexer's loss. recompute: in the
    forward pass blocks keep only their input, the backward pass runs them again - and calls the observer and `indexed`
    again.
    """

    dense: bool = False
    routes: Mapping[int, Tensor] | None = None
    entries: Mapping[int, Tensor] | None = None
    indexed: Callable[[IndexedAttention], None] | None = None
    recompute: bool = False


PLAIN = Regime()


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass over packed tokens. A block reads nothing else: there is no ambient state."""

    tokens_T: Tensor
    sequences: Sequences
    rotations: Rotations
    cache: ModelCache
    observer: Observer | None = None
    regime: Regime = PLAIN
