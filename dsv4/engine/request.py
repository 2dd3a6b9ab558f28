"""One request while it runs: its tokens, its place in the cache, its random numbers."""

import secrets
from dataclasses import dataclass, field
from enum import StrEnum

import torch

from dsv4.generation import SamplingParams


class State(StrEnum):
    WAITING = "waiting"  # no place in the cache yet
    RUNNING = "running"
    ENDED = "ended"


@dataclass(eq=False, slots=True)
class Request:
    """`tokens` is the prompt and everything sampled since; the first `cached` of them are in the cache."""

    number: int
    tokens: list[int]
    params: SamplingParams
    prompt_length: int
    generator: torch.Generator
    state: State = State.WAITING
    cached: int = 0
    slot: int | None = None
    pages: list[int] = field(default_factory=list)

    @classmethod
    def new(cls, number: int, prompt: list[int], params: SamplingParams) -> "Request":
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        return cls(number, list(prompt), params, len(prompt), torch.Generator().manual_seed(seed % 2**63))

    @property
    def uncached(self) -> int:
        return len(self.tokens) - self.cached

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def most_tokens(self) -> int:
        """What the cache must be able to hold: the last sampled token is never fed back."""
        return self.prompt_length + self.params.max_tokens - 1
