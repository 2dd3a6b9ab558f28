"""What a graded conversation is, without a client: its turns, its face, and how long an answer may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dsv4.posttraining.types import Effort
from dsv4.verify.answer import Call

Message = Mapping[str, Any]
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


def request_parts(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[Message], str | None]:
    """Messages, tools and task of a request: an item has its tools in the first message and the task of a quick
    instruction in the last one. A system message that has nothing but tools is left out."""
    plain = [dict(message) for message in messages]
    tools = plain[0].pop("tools", []) if plain else []
    if tools and not plain[0]["content"]:
        plain.pop(0)
    task = plain[-1].pop("task", None) if plain else None
    return plain, tools, task
