"""A run that learns from rollouts: prompts, rollouts, updates, new weights for the engine, and all that a resumed run
needs.

    for each step: prompts -> groups (engine) -> updates (learner) -> weights (sink)

One step's rollouts may be made while the last one's are learned (`rollouts.asynchronous`). Both ways a run that was
killed goes on bit for bit: prompts, seeds and weights of a step follow from its number and the state, and what the
engine had said already is in the rollouts' log. What is learned, and how, is the subclass's.
"""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from dsv4.encoding import Tokenizer
from dsv4.generation import WeightSink
from dsv4.posttraining.learner import Learner
from dsv4.posttraining.prompts import Prompts
from dsv4.posttraining.recipe import RolloutRecipe
from dsv4.posttraining.steps import run_steps
from dsv4.posttraining.types import Group, Prompt
from dsv4.training.states import save_if_there_is_room

Record = dict[str, Any]
R = TypeVar("R", bound=RolloutRecipe)
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a run gets its groups. groups(prompts, number): rollouts of a step. forget(before): drops the logs of
    earlier steps. trial: of the held-out prompts, None where there are none. shown: what a log keeps of a step's groups
    for people to read. tokenizer: of the prompts, None where ids have no text. following: prompts that a step's groups
    lead to, asked and learned in the same step."""

    prompts: Prompts
    groups: Callable[[Sequence[Prompt], int], Awaitable[list[Group]]]
    forget: Callable[[int], None]
    trial: Callable[[int], Awaitable[list[Group]]] | None = None
    shown: Callable[[Sequence[Group]], list[dict[str, Any]]] = lambda groups: []
    tokenizer: Tokenizer | None = None
    following: Callable[[Sequence[Group]], list[Prompt]] = lambda groups: []


class _StopRequested(Exception):
    """Whoever is told of the steps wants no more."""


class RolloutRun(ABC, Generic[R]):
    """A recipe at work in a folder; with a state there it goes on from it. Raises ValueError where that state belongs
    to another recipe."""

    phase: ClassVar[str]  # the name of what it does, for logs

    def __init__(self, recipe: R, folder: Path, learner: Learner, sources: Sources, sink: WeightSink) -> None:
        self.recipe, self.folder, self.learner = recipe, folder, learner
        self._sources, self._sink = sources, sink
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self._record: Record = {}
        self._generated: dict[int, float] = {}  # seconds that a step's rollouts took
        self._saved = self._began = time.monotonic()
        state = learner.load(folder, self._check)
        if state is not None:
            self._resume(state)

    def _check(self, header: Mapping[str, Any]) -> None:
        """Raise ValueError for the state of another recipe, or of a run that has no rollouts."""
        if "run_step" not in header:
            raise ValueError(f"{self.folder} holds a run of another kind, not one of {self.phase}: use another folder")
        self.recipe.check_resume(header["recipe"], self.folder)

    @property
    def done(self) -> bool:
        return self.step >= self.recipe.steps

    async def run(self, tell: Callable[[Record], bool]) -> bool:
        """Steps to the end of the recipe. tell: is given each step's record, and says whether to go on. Saves now and
        then, at the end, and when told to stop. True if the run reached its end."""
        await self._sink.publish(self.learner.weights(self.folder), self.step)
        steps = range(self.step, self.recipe.steps)
        try:
            await run_steps(
                steps, self._generate, self._learn_from, partial(self._publish, tell),
                ahead=self.recipe.rollouts.asynchronous,
            )  # fmt: skip
        except _StopRequested:
            self.save()
            return self.done
        self.save()
        return True

    @abstractmethod
    def _learn(self, groups: Sequence[Group], step: int) -> Record:
        """The updates of a step; returns their numbers. Runs in a thread of its own."""

    async def _rollouts(self, step: int) -> list[Group]:
        """The groups of a step."""
        prompts = self._sources.prompts.batch(step, self.recipe.rollouts.prompts)
        return await self._sources.groups(prompts, step)

    async def _generate(self, step: int) -> list[Group]:
        began = time.perf_counter()
        groups = await self._rollouts(step)
        self._generated[step] = time.perf_counter() - began
        return groups

    async def _learn_from(self, step: int, groups: Sequence[Group]) -> dict[str, Tensor]:
        learned = await asyncio.to_thread(self._learn, groups, step)
        sampled = sum(rollout.length for group in groups for rollout in group.rollouts)
        self.tokens += sampled
        self._record = {"step": step, "tokens": self.tokens, "phase": self.phase, **told(groups), **learned}
        seconds = self._generated.pop(step)
        self._record |= {"rollout_seconds": seconds, "rollout_tokens_per_second": sampled / seconds}
        self._record["samples"] = self._sources.shown(groups)
        return self.learner.weights(self.folder)

    async def _publish(self, tell: Callable[[Record], bool], weights: Mapping[str, Tensor], version: int) -> None:
        """The end of a step: the engine has its weights, and its numbers are told."""
        await self._sink.publish(weights, version)
        self.step = version
        record = self._record | await self._trial(version - 1)
        now = time.monotonic()
        record["seconds"], self._began = now - self._began, now
        self.seconds += record["seconds"]
        if not tell(record):
            raise _StopRequested
        if now - self._saved >= self.recipe.save_seconds and not self.done:
            save_if_there_is_room(self.save)

    async def _trial(self, step: int) -> Record:
        every = self.recipe.held_out.every
        if self._sources.trial is None or not every or (self.step % every and not self.done):
            return {}
        rollouts = [rollout for group in await self._sources.trial(step) for rollout in group.rollouts]
        judged = [float(rollout.reward) for rollout in rollouts if rollout.reward is not None]
        return {
            "held_out_reward": fmean(judged) if judged else float("nan"),
            "held_out_length": fmean(rollout.length for rollout in rollouts),
            "held_out_finished": fmean(float(rollout.finished) for rollout in rollouts),
        }

    def save(self) -> None:
        """Write the state in one piece, and drop the logs of rollouts that are learned."""
        self._saved = time.monotonic()
        self.learner.save(self.folder, self._header())
        self._sources.forget(self.step)

    def _header(self) -> Record:
        """What a state holds besides the learner's."""
        return {
            "recipe": self.recipe.to_dict(),
            "run_step": self.step,
            "sampled": self.tokens,
            "seconds": self.seconds,
        }

    def _resume(self, state: Mapping[str, Any]) -> None:
        """Take what `_header` has given."""
        self.step, self.tokens, self.seconds = state["run_step"], state["sampled"], state["seconds"]


def parts(samples: Sequence[S], count: int, seed: str) -> list[list[S]]:
    """Shuffled and dealt into as many updates."""
    if count == 1:
        return [list(samples)]
    order = list(samples)
    random.Random(f"updates {seed}").shuffle(order)
    return [order[i::count] for i in range(count)]


def together(records: Sequence[Mapping[str, float]]) -> tuple[Counter[str], Record]:
    """The numbers of a step's updates: all of them added up, and those that every kind of run reports."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record)
    found: Record = {name: total[name] / len(records) for name in ("loss", "grad_norm")}
    found |= {"lr": records[-1]["lr"], "skipped": total["skipped"], "update_seconds": total["seconds"]}
    return total, found | {"tokens_per_second": total["tokens"] / total["seconds"]}


def told(groups: Sequence[Group]) -> Record:
    """What a step's rollouts were like: lengths, rewards by domain and mode, the environment's own numbers."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    found: Record = {
        "length": fmean(rollout.length for rollout in rollouts),
        "finished": fmean(float(rollout.finished) for rollout in rollouts),
    }
    by_kind: dict[str, list[float]] = {}
    for rollout in rollouts:
        if rollout.reward is not None:
            by_kind.setdefault(f"reward.{rollout.prompt.domain}.{rollout.prompt.effort}", []).append(rollout.reward)
        for name, value in rollout.metrics.items():
            by_kind.setdefault(f"env.{name}", []).append(value)
    return found | {name: fmean(values) for name, values in sorted(by_kind.items())}
