"""What a graded conversation is, without a client: its turns, its face, and how long an answer may be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dsv4.posttraining.types import Effort
from dsv4.verify.answer import Call

# of the answer, the thought included; what is longer is cut and wrong
LIMITS = {Effort.NON_THINK: 256, Effort.HIGH: 1024, Effort.MAX: 2048}


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer. tokens: of thought and answer. cut: it ran into its limit."""

    content: str
    reasoning: str
    calls: tuple[Call, ...]
    tokens: int
    cut: bool


class Dialogue(Protocol):
    """A conversation that grows."""

    def say(self, text: str) -> None:
        """The user says something."""
        ...

    async def answer(self) -> Turn:
        """The model's next turn, which becomes part of the conversation."""
        ...

    def results(self, results: Sequence[tuple[Call, str]]) -> None:
        """What the calls of the last turn returned."""
        ...
