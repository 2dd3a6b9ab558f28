"""What a training step asks of the processes it runs in: one alone, or several that share each step's sequences."""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn


class Team(Protocol):
    """One process's view of all of them. Every rank makes the same calls in the same order."""

    rank: int
    world: int

    def sum(self, tensor: Tensor) -> None:
        """Add the tensors of all ranks in place."""
        ...

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of what every rank holds a copy of; a missing gradient counts as zero."""
        ...

    def barrier(self) -> None: ...


class Alone:
    """The only process."""

    rank, world = 0, 1

    def sum(self, tensor: Tensor) -> None:
        pass

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        pass

    def barrier(self) -> None:
        pass
