"""A runner of steps that computes nothing: it moves the clock by what a step would take, and answers as scripted."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dsv4.engine.request import Request
from dsv4.engine.runner import Chunk, StepOutput
from dsv4.engine.sampler import Sampler
from dsv4.simulate.drive import SimulatedClock, block_tokens
from dsv4.simulate.shape import StepShape


class StepDurations(Protocol):
    """How long steps take."""

    def seconds(self, step: StepShape) -> float: ...


class SimulatedRunner:
    """Implements StepRunner without a model."""

    drafts = False
    problem: str | None = None
    meanwhile: Callable[[], None] | None = None  # no other thread runs beside a simulated step
    repeats = True

    def __init__(self, times: StepDurations, clock: SimulatedClock) -> None:
        self._times, self._clock = times, clock

    def describe(self) -> str:
        """As in Runner."""
        return "simulated"

    def expert_uses(self) -> dict[int, list[int]]:
        """None are known."""
        return {}

    def notice(self, *, thorough: bool = True) -> bool:
        """There is no model that could change."""
        return False

    def weights_changed(self) -> bool:
        """There are no weights."""
        return False

    def run(self, chunks: list[Chunk]) -> StepOutput:
        """Move the clock. The rows of logits are empty: a scripted sampler does not read them."""
        self._clock.now += self._times.seconds(StepShape.of(chunks))
        logits_of: list[slice] = []
        rows = 0
        for chunk in chunks:
            logits_of.append(slice(rows, rows + chunk.wanted))
            rows += chunk.wanted
        nothing = torch.empty(rows, 0)
        return StepOutput(nothing, [], [], nothing, logits_of, None, [None] * len(chunks))

    def draft(self, chunks: list[Chunk], output: StepOutput) -> None:
        """It makes no drafts."""


class ScriptedSampler(Sampler):
    """Says given tokens, one after another."""

    def __init__(self, request: Request, tokens: Sequence[int]) -> None:
        super().__init__(request.params)
        self._tokens = iter(tokens)

    def choose(self, logits_V: Tensor) -> int:
        """The next token, whatever the logits."""
        return next(self._tokens)


class Scripted:
    """Replaces the samplers of requests. Every answer is different, so that no prefix is shared by accident."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary, self._answers = vocabulary, 0

    def __call__(self, request: Request) -> None:
        self._answers += 1
        answer = block_tokens(f"answer-{self._answers}", request.params.max_tokens, self._vocabulary)
        request.sampler = ScriptedSampler(request, answer)
