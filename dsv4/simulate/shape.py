"""What a step of the engine computes, in numbers: the input of every estimate of its time."""

from collections.abc import Iterable
from dataclasses import dataclass

from dsv4.engine.runner import Chunk


@dataclass(frozen=True, slots=True)
class StepPart:
    """One sequence of a step: `count` new tokens from position `start` on. rows: of logits that are wanted."""

    start: int
    count: int
    rows: int

    @property
    def middle(self) -> int:
        """The position of a mean token."""
        return self.start + self.count // 2


@dataclass(frozen=True, slots=True)
class StepShape:
    """All sequences of one step."""

    parts: tuple[StepPart, ...]

    @classmethod
    def of(cls, chunks: Iterable[Chunk]) -> "StepShape":
        """The shape of these chunks."""
        return cls(tuple(StepPart(chunk.start, chunk.count, chunk.wanted) for chunk in chunks))

    @property
    def tokens(self) -> int:
        """New tokens."""
        return sum(part.count for part in self.parts)

    @property
    def rows(self) -> int:
        """Rows of logits."""
        return sum(part.rows for part in self.parts)


def touched_experts(experts: int, chosen: int, tokens: int) -> float:
    """Mean number of experts of a layer that so many tokens use, if each chooses `chosen` at random (uniform routing).

    >>> touched_experts(256, 6, 1)
    6.0
    """
    return experts * (1 - (1 - chosen / experts) ** tokens)
