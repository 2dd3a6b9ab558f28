"""Workloads that are made here: prompts of one length, prompts behind a shared system prompt, and agents."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from dsv4.workload.trace import PromptBlock, Session, TraceRequest

Kind = Literal["fixed", "prefix", "agent"]


@dataclass(frozen=True, slots=True)
class Workload:
    """What a session asks.

    kind: `fixed` sends one prompt of `input` tokens that shares nothing; `prefix` sends one behind a system prompt of
    `shared` tokens that all sessions have; `agent` sends `turns` prompts one after another behind such a system prompt:
    first `input` tokens, then each time the prompt before, its answer, and the result of a tool of about `tool` tokens.
    output: tokens of an answer; of agents on average, between a quarter and two and a half times as many. delay: mean
    seconds that a tool runs.

    Raises ValueError naming the field and its range.
    """

    kind: Kind = "fixed"
    input: int = 512
    output: int = 128
    shared: int = 2048
    turns: int = 8
    tool: int = 256
    delay: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"workload must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        for name in ("input", "output", "turns", "tool"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("shared", "delay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    @property
    def session_length(self) -> int:
        """Requests of a session."""
        return self.turns if self.kind == "agent" else 1

    def sessions(self, count: int, salt: str = "", seed: int = 0) -> list[Session]:
        """`count` sessions, all due at once. salt: sessions of different salts share nothing. The lengths follow from
        `seed` alone."""
        chance = random.Random(seed)
        return [tuple(self._session(f"{salt}-{number}", salt, chance)) for number in range(count)]

    def _session(self, name: str, salt: str, chance: random.Random) -> Iterator[TraceRequest]:
        system = (PromptBlock(f"{salt}-system", self.shared, "system"),) if self.shared and self.kind != "fixed" else ()
        blocks = (*system, PromptBlock(f"{name}-first", self.input))
        if self.kind != "agent":
            yield TraceRequest(blocks, self.output, 0.0, session=name)
            return
        for turn in range(self.turns):
            output, answer = _about(self.output, chance), f"{name}-answer-{turn}"
            delay = chance.expovariate(1 / self.delay) if turn and self.delay else 0.0
            yield TraceRequest(blocks, output, None if turn else 0.0, delay, name, answer)
            result = PromptBlock(f"{name}-tool-{turn}", _about(self.tool, chance))
            blocks = (*blocks, PromptBlock(answer, output, "assistant"), result)


def _about(mean: int, chance: random.Random) -> int:
    """A length with this mean; a few are much longer, as results of tools and answers are."""
    return max(1, round(mean * min(2.5, max(0.25, chance.lognormvariate(-0.14, 0.6)))))


def poisson(sessions: Sequence[Session], rate: float, seed: int = 0) -> list[Session]:
    """The sessions with arrival times of a Poisson process of `rate` sessions a second; the first arrives at once."""
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be more than 0 sessions a second, got {rate:g}")
    chance, at, arrived = random.Random(seed), 0.0, []
    for session in sessions:
        arrived.append((replace(session[0], at=at), *session[1:]))
        at += chance.expovariate(rate)
    return arrived


def faster(sessions: Sequence[Session], speed: float) -> list[Session]:
    """The sessions with all arrival times and delays divided by `speed`."""
    if not 0 < speed < math.inf:
        raise ValueError(f"speed must be more than 0, got {speed:g}")
    return [
        tuple(
            replace(request, at=None if request.at is None else request.at / speed, delay=request.delay / speed)
            for request in session
        )
        for session in sessions
    ]
