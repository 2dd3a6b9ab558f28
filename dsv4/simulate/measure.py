"""Times of steps measured on this machine: an engine runs small loads, and a sum of a few terms is fitted to them.

Processor time counts, of one thread, so that other programs change the figures little.
"""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from dsv4.config import ModelConfig
from dsv4.engine.batching import Emitted
from dsv4.engine.engine import Engine
from dsv4.engine.runner import Chunk, StepOutput, StepRunner
from dsv4.model.accounting import keys_read
from dsv4.simulate.drive import Drive, SimulatedClock
from dsv4.simulate.engine import EngineSizes
from dsv4.simulate.shape import StepShape, touched_experts
from dsv4.workload.kinds import Workload
from dsv4.workload.timing import Timing
from dsv4.workload.trace import Session

TERMS = ("step", "sequence", "answer token", "prompt token", "entry", "indexer key", "expert", "finished prompt")
LEAST_SAMPLES = 5 * len(TERMS)
PASSES = 5  # of the fit, each with weights from the one before
HELD_UP = 5
SHORTEST = 1e-6  # seconds: no step counts as shorter
# of the loads that are measured: tokens of prompts, of answers and of a tool's result on average, and parts of the
# longest prompt that are a shared prefix
LENGTHS, OUTPUT, TOOL, DEPTHS = (24, 160, 700), 16, 48, (0.1, 0.5, 1.0)


def terms_of(config: ModelConfig, step: StepShape) -> list[float]:
    """How often each of TERMS occurs in a step."""
    answers = sum(part.rows for part in step.parts)
    entries = indexed = 0.0
    for part in step.parts:
        read = keys_read(config, part.middle)
        entries, indexed = entries + part.count * read[0], indexed + part.count * read[1]
    used = touched_experts(config.n_routed_experts, config.num_experts_per_tok, step.tokens)
    finished = sum(part.rows > 0 and part.count > part.rows for part in step.parts)
    return [
        1.0, float(len(step.parts)), float(answers), float(step.tokens - answers), entries, indexed,
        used * config.num_hidden_layers, float(finished),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class FittedTimes:
    """Implements StepDurations by a sum of terms. seconds_of: of each of TERMS. error: mean relative error of the fit;
    samples: steps that it was made of."""

    config: ModelConfig
    seconds_of: tuple[float, ...]
    error: float
    samples: int

    def seconds(self, step: StepShape) -> float:
        """Of one step."""
        return sum(a * b for a, b in zip(self.seconds_of, terms_of(self.config, step), strict=True))

    def to_dict(self) -> dict[str, Any]:
        named = dict(zip(TERMS, self.seconds_of, strict=True))
        return {"seconds": named, "error": self.error, "samples": self.samples}


def fit(config: ModelConfig, samples: Sequence[tuple[StepShape, float]]) -> FittedTimes:
    """The terms that fit best, none of them negative; their sum over all samples is the measured time. Steps that took
    HELD_UP times as long as they should are left out. Raises ValueError for too few samples."""
    if len(samples) < LEAST_SAMPLES:
        raise ValueError(f"samples must be at least {LEAST_SAMPLES} steps, got {len(samples)}")
    terms_SF = torch.tensor([terms_of(config, step) for step, _ in samples], dtype=torch.float64)
    seconds_S = torch.tensor([seconds for _, seconds in samples], dtype=torch.float64)
    # Steps count by 1 / their fitted time. By 1 / measured time, a step would count less because something slowed it,
    # and all fitted times would be too short; so a first pass only finds the steps that were held up.
    kept_F = _solve(terms_SF, seconds_S, seconds_S)
    fine_S = seconds_S <= HELD_UP * (terms_SF @ kept_F).clamp(min=SHORTEST)
    terms_SF, seconds_S = terms_SF[fine_S], seconds_S[fine_S]
    for _ in range(PASSES):
        kept_F = _solve(terms_SF, seconds_S, terms_SF @ kept_F)
    expected_S = terms_SF @ kept_F
    error = ((expected_S - seconds_S).abs() / seconds_S.clamp(min=SHORTEST)).mean()
    return FittedTimes(config, tuple(kept_F.tolist()), float(error), len(samples))


def _solve(terms_SF: torch.Tensor, seconds_S: torch.Tensor, expected_S: torch.Tensor) -> torch.Tensor:
    """Least squares with weights 1 / expected_S; terms that would be negative are dropped, the worst first."""
    weight_S = expected_S.clamp(min=SHORTEST).rsqrt()
    scale_F = terms_SF.mean(0).clamp(min=1e-12)
    a_SF, b_S1 = terms_SF / scale_F * weight_S[:, None], (seconds_S * weight_S)[:, None]
    kept = list(range(terms_SF.shape[1]))
    while True:
        found = torch.linalg.lstsq(a_SF[:, kept], b_S1, driver="gelsd").solution[:, 0]
        if not (found < 0).any():
            result_F = torch.zeros_like(scale_F)
            result_F[kept] = found / scale_F[kept]
            return result_F
        del kept[int(found.argmin())]


@dataclass(slots=True)
class TimedEngine:
    """An engine whose steps are timed. samples: its steps. spent: processor seconds of all of them."""

    engine: Engine
    samples: list[tuple[StepShape, float]] = field(default_factory=list)
    spent: float = 0.0

    def steps(self, sessions: Sequence[Session], users: int | None, timings: list[Timing]) -> Iterator[None]:
        """Run a trace, whose lengths answers have, on a clock that moves by processor time; give control back after
        each step. timings: gets those of all requests."""
        clock, engine = SimulatedClock(), self.engine
        ends, runner, wall = engine.ends, engine.runner, engine.clock
        seen = _SeenRunner(runner)
        # the limit of prompts (`slowdown`) then follows what the steps cost, and not what other programs took
        engine.ends, engine.runner, engine.clock = frozenset(), seen, time.process_time

        def step() -> list[Emitted]:
            seen.steps.clear()
            began = time.process_time()
            events = engine.step()
            seconds = time.process_time() - began
            clock.now, self.spent = clock.now + seconds, self.spent + seconds
            if len(seen.steps) == 1:
                self.samples.append((seen.steps[0], seconds))
            return events

        try:
            yield from Drive(engine, clock, step, users=users, timings=timings).steps(sessions)
        finally:
            engine.ends, engine.runner, engine.clock = ends, runner, wall
            engine.cache.prefixes.clear()


class _SeenRunner:
    """Passes on to a runner and remembers the shapes of its steps."""

    def __init__(self, inner: StepRunner) -> None:
        self._inner, self.steps = inner, list[StepShape]()
        self.problem, self.meanwhile = inner.problem, inner.meanwhile

    @property
    def drafts(self) -> bool:
        return self._inner.drafts

    @property
    def repeats(self) -> bool:
        return self._inner.repeats

    def describe(self) -> str:
        return self._inner.describe()

    def expert_uses(self) -> dict[int, list[int]]:
        return self._inner.expert_uses()

    def notice(self, *, thorough: bool = True) -> bool:
        return self._inner.notice(thorough=thorough)

    def weights_changed(self) -> bool:
        return self._inner.weights_changed()

    def run(self, chunks: list[Chunk]) -> StepOutput:
        self.steps.append(StepShape.of(chunks))
        return self._inner.run(chunks)

    def draft(self, chunks: list[Chunk], output: StepOutput) -> None:
        self._inner.draft(chunks, output)


def small_loads(engine: Engine, longest: int, seed: int = 0) -> Iterator[tuple[list[Session], int]]:
    """Sessions and users of loads that show what steps cost: one to all sequences at once, prompts of several lengths
    behind prefixes of up to `longest` tokens, short answers. longest: of the prompts that will be simulated, since no
    cost can be told of places that no step has reached."""
    room = min(longest, engine.context_length - 1) - OUTPUT
    for place, users in enumerate(sorted({1, 2, max(1, engine.sequences // 2), engine.sequences})):
        for number, length in enumerate(LENGTHS):
            input_, tool = max(1, min(length, room // 8)), max(1, min(TOOL, room // 32))
            # a tool's result and an answer have at most two and a half times their mean
            rest = room - input_ - math.ceil(2.5 * (tool + OUTPUT))
            shared = max(0, int(rest * DEPTHS[(place + number) % len(DEPTHS)]))
            workload = Workload("agent", input=input_, output=OUTPUT, shared=shared, turns=2, tool=tool)
            salt = f"measure-{seed}-{users}-{length}"
            yield workload.sessions(users + 1, salt, seed + number), users


def measure(timed: TimedEngine, longest: int) -> Generator[int, None, None]:
    """Add samples of small loads, in rounds without end; gives the number of the round after each step. longest: as in
    `small_loads`."""
    for number in count():
        for sessions, users in small_loads(timed.engine, longest, number):
            for _ in timed.steps(sessions, users, []):
                yield number


def sizes_of(engine: Engine) -> EngineSizes:
    """What a simulation of this engine needs of it."""
    store = engine.cache.store
    return EngineSizes(
        engine.context_length,
        store.pages.count * store.spec.page_tokens,
        engine.sequences,
        engine.step_tokens,
        store.spec.dtype,
        engine.cache.prefixes.policy,
        engine.slowdown,
    )
