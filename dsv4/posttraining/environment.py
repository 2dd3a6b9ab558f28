"""What answers a rollout: an environment starts an episode for a prompt, the episode takes the policy's turns.

No torch. Everything an episode gives back is plain data, so that a log can hold it (`dsv4.posttraining.wal`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

from dsv4.generation import FinishReason
from dsv4.posttraining.types import Prompt

LARGEST = 1e9  # a reward or a metric


@dataclass(frozen=True, slots=True)
class More:
    """What the environment says to a turn. tokens: come behind the turn, and the policy goes on after them. note: JSON
    that `Episode.replay` needs to take the turn again without running anything."""

    tokens: tuple[int, ...]
    note: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """reward: None where nothing could judge; `error` says why. metrics: numbers for tables, never learned from."""

    reward: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    def checked(self) -> "Verdict":
        """The same, or without reward and with an error where the reward or a metric is no finite number, or one so
        large that the learner's fp32 would overflow."""
        if self.reward is None:
            return self if self.error else Verdict(None, self.metrics, "the environment gave no reward")
        for name, value in {"reward": self.reward, **{f"metric {k}": v for k, v in self.metrics.items()}}.items():
            if (number := _number(value)) is None:
                return Verdict(None, {}, f"the {name} is {value!r}, not a finite number")
            if abs(number) > LARGEST:
                return Verdict(None, {}, f"the {name} is {value!r}, out of range [-{LARGEST:g}, {LARGEST:g}]")
        return Verdict(_number(self.reward), {k: float(v) for k, v in self.metrics.items()}, self.error)


def _number(value: Any) -> float | None:
    """A finite number of any library, as a float; None for anything else."""
    try:
        return float(value) if isinstance(value, Real) and math.isfinite(value) else None
    except OverflowError:  # a whole number that no float holds
        return None


class Episode(Protocol):
    """One trajectory. Calls come one after another."""

    async def turn(self, tokens: Sequence[int], finish: FinishReason) -> More | None:
        """The policy's turn, its end token included. None: the episode is over. Raises ForeignFault where a tool of the
        environment (not the policy) failed."""
        ...

    def replay(self, tokens: Sequence[int], more: More) -> None:
        """Take a turn that a log has, with what was said to it then; runs no tool."""
        ...

    async def verdict(self, finish: FinishReason) -> Verdict:
        """Judge the trajectory; `finish` is LENGTH where it was cut. Raises ForeignFault where a verifier failed."""
        ...


class Environment(Protocol):
    """Makes episodes. Serves many at once. One that has a method `following(groups)` gives further prompts, which are
    asked and learned in the same step of GRPO (`dsv4.posttraining.judge`)."""

    def start(self, prompt: Prompt) -> Episode:
        """Raises ValueError naming the prompt and the field of its task that is missing or wrong."""
        ...


def task_field(prompt: Prompt, name: str) -> Any:
    """A field of the prompt's task. Raises ValueError naming both where there is none."""
    if name not in prompt.task:
        raise ValueError(f"prompt {prompt.key}: task.{name} is missing; it has {', '.join(prompt.task) or 'nothing'}")
    return prompt.task[name]
