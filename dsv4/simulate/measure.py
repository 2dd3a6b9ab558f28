"""Times of steps measured on this machine: an engine runs small loads, and a sum of a few terms is fitted to them.

Processor time counts, of one thread, so that other programs change the figures little.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """The terms that fit best, none of them negative. Steps count by their share of the time, and those of the slowest
    hundredth are left out, which another program has held up. Raises ValueError for too few samples."""
    if len(samples) < LEAST_SAMPLES:
        raise ValueError(f"samples must be at least {LEAST_SAMPLES} steps, got {len(samples)}")
    terms_SF = torch.tensor([terms_of(config, step) for step, _ in samples], dtype=torch.float64)
    seconds_S = torch.tensor([seconds for _, seconds in samples], dtype=torch.float64)
    kept_F = _solve(terms_SF, seconds_S)
    excess_S = seconds_S / (terms_SF @ kept_F).clamp(min=1e-9)
    fine_S = excess_S <= excess_S.quantile(0.99)
    kept_F = _solve(terms_SF[fine_S], seconds_S[fine_S])
    error = ((terms_SF @ kept_F - seconds_S).abs() / seconds_S)[fine_S].mean()
    return FittedTimes(config, tuple(kept_F.tolist()), float(error), len(samples))


def _solve(terms_SF: torch.Tensor, seconds_S: torch.Tensor) -> torch.Tensor:
    """Least squares with weights 1 / sqrt(seconds); terms that would be negative are dropped, the worst first."""
    weight_S = seconds_S.clamp(min=1e-6).rsqrt()
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
    """An engine whose steps are timed. clock: moves by the processor time of each step. samples: its steps."""

    engine: Engine
    clock: SimulatedClock = field(default_factory=SimulatedClock)
    samples: list[tuple[StepShape, float]] = field(default_factory=list)

    def run(self, sessions: Sequence[Session], users: int | None) -> list[Timing]:
        """The timings of a trace; answers have the lengths that it asks for."""
        self.clock.now = 0.0
        engine = self.engine
        ends, runner = engine.ends, engine.runner
        seen = _SeenRunner(runner)
        engine.ends, engine.runner = frozenset(), seen

        def step() -> list[Emitted]:
            seen.steps.clear()
            began = time.process_time()
            events = engine.step()
            spent = time.process_time() - began
            self.clock.now += spent
            if len(seen.steps) == 1:
                self.samples.append((seen.steps[0], spent))
            return events

        try:
            return Drive(engine, self.clock, step, users=users).run(sessions)
        finally:
            engine.ends, engine.runner = ends, runner
            engine.cache.prefixes.clear()


class _SeenRunner:
    """Passes on to a runner and remembers the shapes of its steps."""

    def __init__(self, inner: StepRunner) -> None:
        self._inner, self.steps = inner, list[StepShape]()
        self.problem = inner.problem

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


def measure(timed: TimedEngine, seed: int = 0) -> None:
    """Add samples of small loads of one to all sequences at once: prompts of several lengths, short answers."""
    engine = timed.engine
    room = engine.context_length
    for users in sorted({1, 2, max(1, engine.sequences // 2), engine.sequences}):
        for place, length in enumerate((24, 160, 700)):
            workload = Workload("agent", input=min(length, room // 8), output=16, shared=room // 16, turns=2, tool=48)
            if room // 16 + room // 8 + 2 * (40 + 120) < room:
                timed.run(workload.sessions(users + 1, f"measure-{seed}-{users}-{length}", seed + place), users)


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
    )
