"""The stored weights of a layer's experts, gathered once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from torch import Tensor


@dataclass(eq=False, slots=True)
class ExpertWeights:
    """w1 (gate) and w3 (up) [F, D], w2 (down) [D, F] of every expert, as `matmul.linear` takes them, with their scales.

    shared: the last expert of each list is the shared one: every token goes through it, with weight 1, after the routed
    ones. limit: clamp of the SwiGLU, 0 for none. Addresses are kept: build it anew when a tensor has been replaced.
    """

    w1: Sequence[Tensor]
    w2: Sequence[Tensor]
    w3: Sequence[Tensor]
    s1: Sequence[Tensor | None]
    s2: Sequence[Tensor | None]
    s3: Sequence[Tensor | None]
    limit: float = 0.0
    shared: bool = False
    native: dict[str, object] = field(default_factory=dict, init=False, repr=False)  # what implementations keep
    _addresses: list[int] = field(default_factory=list, init=False, repr=False)  # of all weights when this was built

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.w1, self.w2, self.w3, self.s1, self.s2, self.s3)}
        if len(lengths) != 1 or min(lengths) <= self.shared:
            raise ValueError(f"every list needs an entry per expert, got lengths {sorted(lengths)}")
        self._addresses = self._now()

    def holds(self, first: Tensor) -> bool:
        """Whether this was built of the tensors as they are now: `first` is still the first expert's w1, and no weight
        lies elsewhere than it did. 0.1 us a weight."""
        return self.w1[0] is first and self._now() == self._addresses

    def _now(self) -> list[int]:
        # scales are loaded and moved together with their weights
        return list(map(Tensor.data_ptr, chain(self.w1, self.w2, self.w3)))

    @property
    def routed(self) -> int:
        """Number of experts that ids may name."""
        return len(self.w1) - self.shared
