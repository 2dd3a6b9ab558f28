"""The stored weights of a layer's experts, gathered once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(eq=False, slots=True)
class ExpertWeights:
    """w1 (gate) and w3 (up) [F, D], w2 (down) [D, F] of every expert, as `matmul.linear` takes them, with their scales.

    shared: the last expert of each list is the shared one: every token goes through it, with weight 1, after the routed
    ones. limit: clamp of the SwiGLU, 0 for none. It keeps addresses: build a new one when a tensor was replaced.
    """

    w1: Sequence[Tensor]
    w2: Sequence[Tensor]
    w3: Sequence[Tensor]
    s1: Sequence[Tensor | None]
    s2: Sequence[Tensor | None]
    s3: Sequence[Tensor | None]
    limit: float = 0.0
    shared: bool = False
    native: dict[str, Any] = field(default_factory=dict, init=False, repr=False)  # what implementations keep

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.w1, self.w2, self.w3, self.s1, self.s2, self.s3)}
        if len(lengths) != 1 or min(lengths) <= self.shared:
            raise ValueError(f"every list needs an entry per expert, got lengths {sorted(lengths)}")

    @property
    def routed(self) -> int:
        """Number of experts that ids may name."""
        return len(self.w1) - self.shared
