"""Policies without a model, and environments without a chat, for tests of rollouts."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any

from dsv4.generation import FinishReason, RequestOptions, SamplingParams, TokenEvent
from dsv4.posttraining.environment import More, Verdict
from dsv4.posttraining.types import Prompt
from dsv4.testing.stub import StubGenerator

END = 1
PATIENCE = 60.0  # a deadlock fails instead of hanging; nothing is decided by time


def run(work: Awaitable[Any]) -> Any:
    """Run a coroutine to its end."""

    async def bounded() -> Any:
        return await asyncio.wait_for(work, PATIENCE)

    return asyncio.run(bounded())


def prompts(count: int, domain: str = "math") -> list[Prompt]:
    return [Prompt(f"{domain}/{i}", (0, 5, 10 + i), domain) for i in range(count)]


def token_at(seed: int, position: int, share: int) -> int:
    """A random token as the engine's sampler draws it: by seed and position; one in `share` is the end."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    return END if number % share == 0 else 2 + number // share % 90


def babble(share: int = 20) -> StubGenerator:
    """Answers of random lengths, `share` tokens on average."""

    def script(prompt: Sequence[int], params: SamplingParams) -> list[int]:
        assert params.seed is not None
        tokens: list[int] = []
        while not tokens or tokens[-1] != END:
            tokens.append(token_at(params.seed, len(prompt) + len(tokens), share))
        return tokens

    return StubGenerator(script, context_length=100_000)


class Killed(BaseException):
    """Ends a run as a signal would."""


class Mortal:
    """A generator that raises `error` after a number of events in all, once or again and again."""

    def __init__(self, inner: StubGenerator, lives: list[int], error: type[BaseException]) -> None:
        self.inner, self.lives, self.error = inner, lives, error

    @property
    def context_length(self) -> int:
        return self.inner.context_length

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncIterator[TokenEvent]:
        async for event in self.inner.stream(prompt, params, options):
            if self.lives:
                self.lives[0] -= 1
                if self.lives[0] < 0:
                    self.lives.pop(0)
                    raise self.error("the machine is gone")
            yield event


class Lengths:
    """An environment whose reward is the number of tokens; says `more` after each of the first turns."""

    def __init__(self, turns: int = 1, more: tuple[int, ...] = (7, 8)) -> None:
        self.turns, self.more = turns, more
        self.asked: list[tuple[str, list[int]]] = []
        self.replayed = 0

    def start(self, prompt: Prompt) -> "LengthEpisode":
        return LengthEpisode(self, prompt)


class LengthEpisode:
    def __init__(self, environment: Lengths, prompt: Prompt) -> None:
        self.environment, self.prompt = environment, prompt
        self.lengths: list[int] = []

    async def turn(self, tokens: Sequence[int], finish: FinishReason) -> More | None:
        self.environment.asked.append((self.prompt.key, list(tokens)))
        self.lengths.append(len(tokens))
        if finish is not FinishReason.STOP or len(self.lengths) >= self.environment.turns:
            return None
        return More(self.environment.more, {"turn": len(self.lengths)})

    def replay(self, tokens: Sequence[int], more: More) -> None:
        self.environment.replayed += 1
        self.lengths.append(len(tokens))
        assert more.note == {"turn": len(self.lengths)}

    async def verdict(self, finish: FinishReason) -> Verdict:
        return Verdict(float(sum(self.lengths)), {"turns": float(len(self.lengths))})


class SameVerdict:
    """Gives every answer the same verdict."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict_of_all = verdict

    def start(self, prompt: Prompt) -> "SameVerdict":
        return self

    async def turn(self, tokens: Sequence[int], finish: FinishReason) -> More | None:
        return None

    def replay(self, tokens: Sequence[int], more: More) -> None:
        raise AssertionError("one turn")

    async def verdict(self, finish: FinishReason) -> Verdict:
        return self.verdict_of_all
