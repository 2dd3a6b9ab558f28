"""Which tokens of the student's answers are learned from a teacher, and how much each counts. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict

from dsv4.generation import FinishReason
from dsv4.posttraining.types import Group, Rollout, Sample

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """Cures for known faults of learning from one's own samples (docs/posttraining.md).

    repeats: where an answer that was cut ends in so many copies of the same at most `period` tokens, all copies but the
    first count nothing; 0 = they count. A teacher also goes on with a loop, so loops look well learned and grow. An
    answer that the student ended itself has left its loop (10000 ends in one). cut: answers that
    ran into their limit are learned from like others, or masked. half_life: tokens after which a token counts half; 0 =
    all alike. wrong_prefix: of an answer whose reward is below `right`, only so many tokens count; 0 = all. What
    follows a mistake is text that the teacher would never have written. without: ids that are not learned and that
    neither distribution is over, such as control tokens that student and teacher use differently.
    """

    repeats: int = 4
    period: int = 64
    cut: Literal["learn", "mask"] = "learn"
    half_life: float = 0.0
    wrong_prefix: int = 0
    right: float = 0.5
    without: tuple[int, ...] = ()
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.repeats == 1 or self.repeats < 0:
            raise ValueError(f"tokens.repeats must be 0 or at least 2, got {self.repeats}")
        for name, least in (("period", 1), ("half_life", 0), ("wrong_prefix", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"tokens.{name} must be at least {least}, got {getattr(self, name)}")
        if any(token < 0 for token in self.without):
            raise ValueError(f"tokens.without must be ids of at least 0, got {list(self.without)}")


@dataclass(frozen=True, slots=True)
class WeighedSample:
    """A sample, and how much each of its tokens counts: 0 where it is not learned. teacher: by number."""

    sample: Sample
    weights: tuple[float, ...]
    teacher: int


@dataclass(slots=True)
class LearnableSamples:
    """What there is to learn from some groups. broken: rollouts that the engine, a tool or a verifier failed on.
    masked: that were cut or have nothing to learn. repeating: that end in a loop. looped: tokens of those loops."""

    samples: list[WeighedSample] = field(default_factory=list)
    broken: int = 0
    masked: int = 0
    repeating: int = 0
    looped: int = 0


def choose(groups: Sequence[Group], settings: TokenSettings, teachers: Mapping[str, int]) -> LearnableSamples:
    """teachers: numbers by domain. Raises ValueError for a domain without one."""
    found = LearnableSamples()
    for group in groups:
        domain = group.prompt.domain
        if domain not in teachers:
            raise ValueError(f"teachers.{domain} is missing: there are prompts of this domain")
        for rollout in group.rollouts:
            if rollout.finish in (FinishReason.ERROR, FinishReason.ABORT) or rollout.error is not None:
                found.broken += 1
                continue
            loop = loop_start(rollout, settings)
            found.repeating += loop < len(rollout.tokens)
            found.looped += len(rollout.tokens) - loop
            weights = _weights(rollout, loop, settings)
            if not any(weights):
                found.masked += 1
                continue
            sample = Sample.of(rollout, 0.0)
            prompt = (0.0,) * len(rollout.prompt.tokens)
            found.samples.append(WeighedSample(sample, (*prompt, *weights), teachers[domain]))
    return found


def loop_start(rollout: Rollout, settings: TokenSettings) -> int:
    """The first token that only repeats what stands before it, in a loop that lasts to where the answer was cut; the
    number of tokens where there is none."""
    tokens, first = rollout.tokens, len(rollout.tokens)
    if rollout.finished or not settings.repeats:
        return first
    for period in range(1, min(settings.period, len(tokens) // 2) + 1):
        same = len(tokens)
        while same > period and tokens[same - 1] == tokens[same - 1 - period]:
            same -= 1
        if len(tokens) - same >= (settings.repeats - 1) * period:
            first = min(first, same)
    return first


def _weights(rollout: Rollout, loop: int, settings: TokenSettings) -> list[float]:
    """Of the tokens after the prompt."""
    if settings.cut == "mask" and not rollout.finished:
        return [0.0] * len(rollout.tokens)
    last = loop
    if settings.wrong_prefix and (rollout.reward is None or rollout.reward < settings.right):
        last = min(last, settings.wrong_prefix)
    found = [
        float(own and i < last and token not in settings.without)
        for i, (token, own) in enumerate(zip(rollout.tokens, rollout.sampled, strict=True))
    ]
    if settings.half_life:
        found = [weight * 0.5 ** (i / settings.half_life) for i, weight in enumerate(found)]
    return found


def shares(
    samples: Sequence[WeighedSample], weights: Mapping[str, float], normalise: Literal["domains", "tokens"]
) -> dict[str, float]:
    """What a token's weight is multiplied with, by domain. "domains": a domain's tokens together count as much as its
    weight says; "tokens": each token does, so that domains of long answers count more."""
    if normalise == "tokens":
        return dict(weights)
    sums: dict[str, float] = {}
    for one in samples:
        sums[one.sample.domain] = sums.get(one.sample.domain, 0.0) + sum(one.weights)
    return {domain: weights[domain] / total for domain, total in sums.items()}


def told_of(chosen: LearnableSamples) -> dict[str, Any]:
    """For the log."""
    counts = {name: float(getattr(chosen, name)) for name in ("broken", "masked", "repeating", "looped")}
    return counts | {"samples_learned": float(len(chosen.samples))}
