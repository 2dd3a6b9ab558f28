"""What changes over a run, as pure functions of the tokens seen (report 4.2, 4.3): stages of sequence length and
sparsity, learning rate, batch size, weight of the prediction block, number formats.

Published: warm-up of 2,000 steps, constant rate, cosine to a tenth; lengths 4K, 16K, 64K, 1M; sparse attention from 64K
on after a short warm-up of the indexers; MTP weight 0.3, then 0.1 from the start of the decay. Not published, so a
recipe must choose: tokens per stage, batch ramp, start of the decay, start of quantisation.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum


class Phase(StrEnum):
    """How CSA layers attend, and what trains."""

    DENSE = "dense"  # every visible entry; the indexers rest
    WARMUP = "warmup"  # every visible entry; only the indexers train
    SPARSE = "sparse"  # the indexers' choice; everything trains


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of the run. tokens: how long it lasts. length: tokens of a packed sequence. yarn: the long-range rotary
    table is scaled. lr: a fixed learning rate in place of the schedule's (indexer warm-up: V3.2 used 1e-3)."""

    tokens: int
    length: int
    phase: Phase = Phase.SPARSE
    yarn: bool = False
    lr: float | None = None

    def __post_init__(self) -> None:
        _positive("stage.tokens", self.tokens)
        _positive("stage.length", self.length)
        if self.lr is not None:
            _positive("stage.lr", self.lr)


@dataclass(frozen=True, slots=True)
class LearningRate:
    """Linear warm-up, constant, cosine to `final`. warmup and the decay's borders are in tokens seen."""

    peak: float
    final: float
    warmup: int
    decay_from: int
    decay_to: int

    def __post_init__(self) -> None:
        _positive("lr.peak", self.peak)
        if not 0 <= self.final <= self.peak:
            raise ValueError(f"lr.final must be in [0, lr.peak {self.peak}], got {self.final}")
        if not 0 <= self.warmup <= self.decay_from <= self.decay_to:
            raise ValueError(
                f"lr.warmup, lr.decay_from and lr.decay_to must ascend from 0, got {self.warmup}, {self.decay_from}, "
                f"{self.decay_to}"
            )

    def at(self, tokens: int, batch: int) -> float:
        """The rate of the step that begins after `tokens` tokens and has `batch`: the warm-up counts these too."""
        if tokens + batch < self.warmup:
            return self.peak * (tokens + batch) / self.warmup
        if tokens < self.decay_from:
            return self.peak
        if tokens >= self.decay_to:
            return self.final
        share = (tokens - self.decay_from) / (self.decay_to - self.decay_from)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True, slots=True)
class BatchRamp:
    """Tokens per step: from `start`, linearly over `ramp` tokens, to `full`."""

    full: int
    start: int = 0  # 0: full from the start
    ramp: int = 0

    def __post_init__(self) -> None:
        _positive("batch.full", self.full)
        if not 0 <= self.start <= self.full:
            raise ValueError(f"batch.start must be in [0, batch.full {self.full}], got {self.start}")
        if self.ramp < 0:
            raise ValueError(f"batch.ramp must be at least 0, got {self.ramp}")
        if bool(self.start) != bool(self.ramp):
            raise ValueError(f"batch.start and batch.ramp need each other, got {self.start} and {self.ramp}")

    def at(self, tokens: int) -> int:
        if not self.start or tokens >= self.ramp:
            return self.full
        return self.start + (self.full - self.start) * tokens // self.ramp


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What holds for the step that begins now."""

    stage: Stage
    stage_index: int
    lr: float
    batch_tokens: int
    mtp_weight: float
    qat: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """A whole run. qat_from: tokens seen when weights and cache rows start to be quantised; None = never."""

    stages: tuple[Stage, ...]
    lr: LearningRate
    batch: BatchRamp
    mtp_weights: tuple[float, float] = (0.3, 0.1)  # before and from the start of the decay
    qat_from: int | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages must not be empty")
        for i, (before, stage) in enumerate(zip(self.stages, self.stages[1:], strict=False), start=1):
            if stage.length < before.length:
                raise ValueError(f"stages[{i}].length must be at least {before.length}, got {stage.length}")
            if before.yarn and not stage.yarn:
                raise ValueError(f"stages[{i}].yarn must stay on once it is on")
            if stage.phase is Phase.DENSE and before.phase is not Phase.DENSE:
                raise ValueError(f"stages[{i}].phase must not go back to dense after {before.phase.value}")
        if self.qat_from is not None and not 0 <= self.qat_from < self.tokens:
            raise ValueError(f"qat_from must be in [0, {self.tokens}), got {self.qat_from}")
        if min(self.mtp_weights) < 0:
            raise ValueError(f"mtp_weights must be at least 0, got {self.mtp_weights}")

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return sum(stage.tokens for stage in self.stages)

    def at(self, tokens: int) -> StepSettings:
        """What holds after `tokens` tokens; from the end on the last stage's settings."""
        if tokens < 0:
            raise ValueError(f"tokens must be at least 0, got {tokens}")
        index, left = 0, tokens
        while index + 1 < len(self.stages) and left >= self.stages[index].tokens:
            left -= self.stages[index].tokens
            index += 1
        stage = self.stages[index]
        batch = max(self.batch.at(tokens), stage.length)
        return StepSettings(
            stage=stage,
            stage_index=index,
            lr=self.lr.at(tokens, batch) if stage.lr is None else stage.lr,
            batch_tokens=batch,
            mtp_weight=self.mtp_weights[tokens >= self.lr.decay_from],
            qat=self.qat_from is not None and tokens >= self.qat_from,
        )


def past_change(old: Schedule, new: Schedule, tokens: int) -> str | None:
    """The first field of `new` by which a run that has seen `tokens` tokens of `old` would have gone otherwise; None
    where only its future differs: more tokens in the stage that runs, further stages, a later decay or quantisation."""
    tokens = min(tokens, old.tokens)  # the last step may have read beyond the end
    if not tokens:
        return None
    before, after = _stages_until(old, tokens), _stages_until(new, tokens)
    for i, stage in enumerate(before):
        if i >= len(after) or stage != after[i]:
            return f"stages.{i}"
    if len(after) > len(before):
        return f"stages.{len(before) - 1}"
    if old.batch != new.batch:
        return "batch"
    decaying = tokens > min(old.lr.decay_from, new.lr.decay_from)
    fixed = ("peak", "warmup", *(("final", "decay_from", "decay_to") if decaying else ()))
    for name in fixed:
        if getattr(old.lr, name) != getattr(new.lr, name):
            return f"lr.{name}"
    if old.mtp_weights[: 1 + decaying] != new.mtp_weights[: 1 + decaying]:
        return "mtp_weights"
    starts = [tokens if s.qat_from is None else min(s.qat_from, tokens) for s in (old, new)]
    return "qat_from" if starts[0] != starts[1] else None


def _stages_until(schedule: Schedule, tokens: int) -> list[tuple[Stage, int]]:
    """The stages that a run of `tokens` tokens has been in, and where each ended or the run stands."""
    found, start = [], 0
    for i, stage in enumerate(schedule.stages):
        if start < tokens:
            last = i + 1 == len(schedule.stages)  # holds on beyond its end
            end = tokens if last else min(start + stage.tokens, tokens)
            found.append((replace(stage, tokens=1), end))
        start += stage.tokens
    return found


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
