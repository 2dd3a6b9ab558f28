"""The values that the stages of post-training exchange: Prompt -> Rollout -> Group -> Sample.

Plain data without torch, so that workers on other machines can make and send them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dsv4.generation import FinishReason, TokenTrace


class Effort(StrEnum):
    """The three reasoning modes of the report (5.1.1, table 2)."""

    NON_THINK = "non-think"
    HIGH = "high"
    MAX = "max"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question for the policy. key: the same for the same question over the whole run, so that a log and a resumed
    run find it again. tokens: the rendered prompt. domain: which specialist or teacher it belongs to. task: what the
    environment needs to judge the answer; it must be JSON.

        Prompt(key="math/17", tokens=(0, 812, 9), domain="math", effort=Effort.HIGH, task={"answer": "42"})
    """

    key: str
    tokens: tuple[int, ...]
    domain: str
    effort: Effort = Effort.HIGH
    task: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError(f"prompt {self.key}: tokens must not be empty")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One finished trajectory of the policy after a prompt, tool results between its turns included.

    tokens: everything after the prompt, end tokens included. sampled: which of them the policy chose; the others were
    put there by the environment and are never learned. logprobs: of each sampled token, under the distribution it was
    sampled from (temperature 1, truncation applied); 0 for the others. versions: the weights version that chose each
    token. finish: LENGTH where the answer was cut. reward: None where no verifier could judge it; then `error` says
    why, and nothing is learned from it. metrics: what the environment measured besides. trace: what the model chose
    inside, position by position from the first token of the prompt to the one before the last, which nothing follows;
    None where it was not recorded.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    sampled: tuple[bool, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    finish: FinishReason
    reward: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    trace: TokenTrace | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.tokens), len(self.sampled), len(self.logprobs), len(self.versions)}
        if len(lengths) != 1:
            raise ValueError(
                f"rollout of {self.prompt.key}: tokens, sampled, logprobs and versions must be equally long, got "
                f"{len(self.tokens)}, {len(self.sampled)}, {len(self.logprobs)} and {len(self.versions)}"
            )

    @property
    def finished(self) -> bool:
        """Whether the policy ended the answer by itself."""
        return self.finish is FinishReason.STOP

    @property
    def broken(self) -> bool:
        """Whether the engine ended it, or nothing gave it a finite reward: then nothing is learned from it."""
        failed = self.finish in (FinishReason.ERROR, FinishReason.ABORT)
        return failed or self.reward is None or not math.isfinite(self.reward)

    @property
    def length(self) -> int:
        """Tokens that the policy chose."""
        return sum(self.sampled)

    @property
    def oldest(self) -> int:
        """The oldest weights that chose a token of it; 0 where it chose none."""
        chosen = (version for version, own in zip(self.versions, self.sampled, strict=True) if own)
        return min(chosen, default=0)


@dataclass(frozen=True, slots=True)
class Group:
    """All rollouts of one prompt: what group advantages compare."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> list[float]:
        """Of the rollouts that could be judged."""
        return [rollout.reward for rollout in self.rollouts if rollout.reward is not None]

    @property
    def usable(self) -> list[Rollout]:
        """Rollouts to learn from: neither broken nor empty."""
        return [rollout for rollout in self.rollouts if rollout.length and not rollout.broken]


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence to learn from: prompt and trajectory together.

    tokens: [T]. learn: [T], True where a token was chosen by the policy and counts. logprobs: [T], of the learned
    tokens under the distribution they were sampled from. advantage: of the whole trajectory. domain: decides teacher,
    weight and penalty. trace: as in Rollout. version: the oldest weights that chose a token of it.
    """

    tokens: Sequence[int]
    learn: Sequence[bool]
    logprobs: Sequence[float]
    advantage: float
    domain: str
    key: str
    finished: bool = True
    trace: TokenTrace | None = None
    version: int = 0

    @classmethod
    def of(cls, rollout: Rollout, advantage: float) -> "Sample":
        """A rollout with its advantage."""
        prompt = len(rollout.prompt.tokens)
        return cls(
            tokens=(*rollout.prompt.tokens, *rollout.tokens),
            learn=(*(False,) * prompt, *rollout.sampled),
            logprobs=(*(0.0,) * prompt, *rollout.logprobs),
            advantage=advantage,
            domain=rollout.prompt.domain,
            key=rollout.prompt.key,
            finished=rollout.finished,
            trace=rollout.trace,
            version=rollout.oldest,
        )
