"""The settings of learning from rewards, checked where they are made; nothing here loads torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

from dsv4.posttraining.types import Effort

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The objective of GRPO (V3.2; R1 where it says so). Published: no division by the standard deviation (V3.2), clip
    10 (R1). Not published: `off_policy`, `stale`.

    clip_low, clip_high: the ratio of new to old probability counts within [1 - clip_low, 1 + clip_high]. std: divide
    advantages by their group's standard deviation, as R1. normalise: what the sum over learned tokens is divided by:
    "tokens" all learned tokens of the update, "constant" its samples times the longest answer that was allowed
    (Dr.GRPO), "sequence" each answer by its own length first (V3.2 as printed; short answers count more per token).
    cut: answers that ran into their limit are learned from like others, or masked: their reward still counts in the
    group's mean. off_policy: a sample of negative advantage whose mean log(old / new) is larger counts nothing.
    stale: how many versions of the weights the oldest token of a group may be behind. updates: how many updates share
    the rollouts of a step.
    """

    clip_low: float = 10.0
    clip_high: float = 10.0
    std: bool = False
    normalise: Literal["tokens", "constant", "sequence"] = "tokens"
    cut: Literal["learn", "mask"] = "learn"
    off_policy: float = 0.1
    stale: int = 4
    updates: int = 1
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high", "off_policy"):
            if not getattr(self, name) > 0:
                raise ValueError(f"policy.{name} must be positive, got {getattr(self, name)}")
        if self.stale < 0:
            raise ValueError(f"policy.stale must be at least 0, got {self.stale}")
        if self.updates < 1:
            raise ValueError(f"policy.updates must be at least 1, got {self.updates}")


@dataclass(frozen=True, slots=True)
class KlSettings:
    """How strongly the policy is held to a reference. beta: where `domains` has no value of its own (R1: 0.001; V3.2:
    weak or 0 for mathematics). every: updates after which the reference becomes the policy of that moment (R1: 400)."""

    beta: float = 0.001
    domains: dict[str, float] = field(default_factory=dict)
    every: int = 400
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        for name, value in {"beta": self.beta, **{f"domains.{k}": v for k, v in self.domains.items()}}.items():
            if not value >= 0:
                raise ValueError(f"kl.{name} must be at least 0, got {value}")
        if self.every < 1:
            raise ValueError(f"kl.every must be at least 1, got {self.every}")

    @property
    def used(self) -> bool:
        """Whether any domain needs a reference."""
        return self.beta > 0 or any(value > 0 for value in self.domains.values())

    def of(self, domain: str) -> float:
        """The weight of a domain."""
        return self.domains.get(domain, self.beta)


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """Which prompts a step learns from. The defaults take those that were drawn, as R1 and V3.2 do.

    draws: where all rewards of a group are equal before the length penalty, it compares nothing, and another prompt is
    asked in its place, until the step has enough or has asked `draws` times `rollouts.prompts` (dynamic sampling of
    DAPO, 2503.14476); what is equal in the end is left out. 1 = every group is taken as it is. again: share of a step's
    prompts that were asked before and had a mean reward in [low, high], rounded to whole prompts (a recipe in which
    that is none is refused); those asked longest ago come first. pool: how many such prompts are kept.
    """

    draws: int = 1
    again: float = 0.0
    low: float = 0.1
    high: float = 0.9
    pool: int = 256
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        for name in ("draws", "pool"):
            if getattr(self, name) < 1:
                raise ValueError(f"selection.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.again <= 1:
            raise ValueError(f"selection.again must be in [0, 1], got {self.again}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"selection.low must be at most selection.high, got {self.low} and {self.high}")

    @property
    def used(self) -> bool:
        """Whether a step may learn from other prompts than those that were drawn first."""
        return self.draws > 1 or self.again > 0


def asked_again(share: float, prompts: int) -> int:
    """How many of a step's prompts are asked again."""
    return round(share * prompts)


@dataclass(frozen=True, slots=True)
class EffortSettings:
    """What sets a reasoning mode apart in RL (report 5.1.1): its window and its length penalty; values not published.

    tokens: the longest answer; what is longer is cut. An answer of n tokens loses
    min(most, slope * max(0, n - window) / window) of its reward: nothing within the window, `slope` at twice the
    window. window: 0 = no penalty.
    """

    tokens: int = 512
    window: int = 0
    slope: float = 0.0
    most: float = 0.5
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"efforts: tokens must be at least 1, got {self.tokens}")
        for name in ("window", "slope", "most"):
            if getattr(self, name) < 0:
                raise ValueError(f"efforts: {name} must be at least 0, got {getattr(self, name)}")
        if self.slope and not self.window:
            raise ValueError("efforts: slope needs a window")

    def penalty(self, length: int) -> float:
        """What an answer of so many tokens loses."""
        if not self.window:
            return 0.0
        return min(self.most, self.slope * max(0, length - self.window) / self.window)


def effort_settings(efforts: Mapping[Effort, EffortSettings], effort: Effort) -> EffortSettings:
    """Those of a mode. Raises ValueError for one that the recipe does not have."""
    found = efforts.get(effort)
    if found is None:
        raise ValueError(f"efforts.{effort.value} is missing: there are prompts of this mode")
    return found


@dataclass(frozen=True, slots=True)
class RateSettings:
    """The learning rate: `warmup` updates upwards, then constant, or a cosine down to `final` at the run's end. There
    is no linear decay: it is reported to collapse RL where a cosine does not (docs/posttraining.md)."""

    peak: float
    final: float = 0.0
    shape: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if not self.peak > 0:
            raise ValueError(f"lr.peak must be positive, got {self.peak}")
        if not 0 <= self.final <= self.peak:
            raise ValueError(f"lr.final must be in [0, lr.peak {self.peak}], got {self.final}")
        if self.warmup < 0:
            raise ValueError(f"lr.warmup must be at least 0, got {self.warmup}")

    def at(self, step: int, steps: int) -> float:
        """The rate of update number `step` (from 0) of `steps`."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if self.shape == "constant":
            return self.peak
        share = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * share))
