"""One generated task: a conversation that shows the right behaviour, and what a grader compares."""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HELD_OUT_SHARE = 16  # one question in this many is held out from training
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """A conversation in OpenAI messages that ends with the assistant's right answer.

    messages: system, user, assistant and tool messages. Each assistant message has `content` and, for the thinking
    modes, `reasoning_content`; `tool_calls` where it calls. domain: the specialist that learns it (math, state, search,
    tools, facts, talk). task: the kind within the domain, for tables. answer and verifier: what
    `dsv4.posttraining.verifiers` compares a model's final answer with, and how. deep: the reasoning of the last
    assistant message in the mode Think Max: longer, with a check of the result; None where it is the same. level: how
    hard, from 0.
    """

    domain: str
    task: str
    messages: tuple[Message, ...]
    answer: Any
    verifier: str
    tools: tuple[dict[str, Any], ...] = ()
    deep: str | None = None
    level: int = 0

    @property
    def question(self) -> str:
        """The text that decides whether the item is held out: all that the user says."""
        return "\n".join(m["content"] for m in self.messages if m["role"] == "user")

    @property
    def held_out(self) -> bool:
        return zlib.crc32(self.question.encode()) % HELD_OUT_SHARE == 0


Maker = Callable[[random.Random], Item]


def draw(make: Maker, rng: random.Random, *, held_out: bool = False) -> Item:
    """An item of the training set, or of the held-out set. Raises RuntimeError where a maker has none in 10,000."""
    for _ in range(10_000):
        item = make(rng)
        if item.held_out == held_out:
            return item
    raise RuntimeError(f"{make} makes no {'held-out' if held_out else 'training'} item")
