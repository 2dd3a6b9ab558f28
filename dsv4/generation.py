"""The narrow waist: all that server, evaluation and post-training know of an engine.

Tokens go in, tokens and log-probabilities come out. Standard library only, so importing it never loads torch.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable


class FinishReason(StrEnum):
    """Why a completion ended. Every request ends in exactly one of these."""

    STOP = "stop"  # an end token, a stop id or a stop string
    LENGTH = "length"  # max_tokens or the context limit
    ABORT = "abort"  # cancelled by the caller
    ERROR = "error"  # the engine failed; Completion.error says why


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen.

    temperature: 0 means greedy; otherwise logits are divided by it (0..2).
    top_p: keep the smallest set of tokens whose probability reaches it (0 < top_p <= 1).
    seed: None draws one from the operating system; a fixed seed gives the same text.
    stop_ids: token ids that end the completion (not part of the output text).
    top_logprobs: alternatives recorded per token (0..20); only with `logprobs`.

    Raises ValueError naming the field and its allowed range.
    """

    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_logprobs", "seed"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{name} must be an integer, got {value!r}")
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0.0 <= self.temperature <= 2.0:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.top_logprobs <= 20:
            raise ValueError(f"top_logprobs must be in [0, 20], got {self.top_logprobs}")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=True")


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a model's generation_config.json recommends where a request says nothing; ranges as in SamplingParams."""

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        SamplingParams(temperature=self.temperature, top_p=self.top_p)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of the chosen token and of the most likely ones, at temperature 1."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step of one completion: a token, or the end (then `finish` is set and `token` may be None)."""

    token: int | None
    finish: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


@dataclass(slots=True)
class Completion:
    """A whole answer: the tokens (without the end token), why it ended, and their log-probabilities."""

    tokens: list[int] = field(default_factory=list)
    finish: FinishReason = FinishReason.LENGTH
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: str | None = None

    def add(self, event: TokenEvent) -> None:
        """Take one more event; the token that ends an answer by `stop` is not part of it."""
        if event.token is not None and event.finish is not FinishReason.STOP:
            self.tokens.append(event.token)
            if event.logprobs is not None:
                self.logprobs.append(event.logprobs)
        if event.finish is not None:
            self.finish, self.error = event.finish, event.error


@runtime_checkable
class TokenGenerator(Protocol):
    """What an engine offers. `context_length` is the largest prompt plus completion in tokens."""

    @property
    def context_length(self) -> int: ...

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[TokenEvent]:
        """Yield one event per token; the last event carries `finish`. Closing the iterator cancels the work."""
        ...


def collect(events: Iterator[TokenEvent]) -> Completion:
    """Gather a stream of events into one Completion."""
    completion = Completion()
    for event in events:
        completion.add(event)
    return completion
