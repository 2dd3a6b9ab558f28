"""A GRPO run: rollouts, judgement, updates, new weights for the engine, and all that a resumed run needs.

    for each step: prompts -> groups (engine) -> samples with advantages -> updates (learner) -> weights (sink)

One step's rollouts may be made while the last one's are learned (`rollouts.asynchronous`). Both ways a run that was
killed goes on bit for bit: prompts, seeds and weights of a step follow from its number and the state, and what the
engine had said already is in the rollouts' log.
"""

import asyncio
import copy
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from dsv4.files import is_full, write_whole
from dsv4.generation import WeightSink
from dsv4.model.transformer import Transformer
from dsv4.posttraining.grpo import Judged, PolicyLoss, judge
from dsv4.posttraining.learner import Learner
from dsv4.posttraining.policy import PolicyBatch, pack_samples
from dsv4.posttraining.prompts import Prompts
from dsv4.posttraining.recipe import GrpoRecipe
from dsv4.posttraining.steps import run_steps
from dsv4.posttraining.types import Group, Prompt, Sample
from dsv4.training.states import load_state

_log = logging.getLogger(__name__)
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a run gets its groups. groups(prompts, number): rollouts of a step. forget(before): drops the logs of
    earlier steps. trial: of the held-out prompts, None where there are none. shown: what a log keeps of a step's groups
    for people to read."""

    prompts: Prompts
    groups: Callable[[Sequence[Prompt], int], Awaitable[list[Group]]]
    forget: Callable[[int], None]
    trial: Callable[[int], Awaitable[list[Group]]] | None = None
    shown: Callable[[Sequence[Group]], list[dict[str, Any]]] = lambda groups: []


class _StopRequested(Exception):
    """Whoever is told of the steps wants no more."""


class GrpoRun:
    """A recipe at work in a folder; with a state there it goes on from it. Raises ValueError where that state belongs
    to another recipe."""

    def __init__(self, recipe: GrpoRecipe, folder: Path, learner: Learner, sources: Sources, sink: WeightSink) -> None:
        self.recipe, self.folder, self.learner = recipe, folder, learner
        self._sources, self._sink = sources, sink
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self._reference: Transformer | None = None
        self._reference_of = 0
        self._record: Record = {}
        self._generated: dict[int, float] = {}  # seconds that a step's rollouts took
        self._saved = self._began = time.monotonic()
        self._load()

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

    async def _generate(self, step: int) -> list[Group]:
        began = time.perf_counter()
        prompts = self._sources.prompts.batch(step, self.recipe.rollouts.prompts)
        groups = await self._sources.groups(prompts, step)
        self._generated[step] = time.perf_counter() - began
        return groups

    async def _learn_from(self, step: int, groups: Sequence[Group]) -> dict[str, Tensor]:
        judged = judge(groups, self.recipe.policy, self.recipe.efforts, step)
        learned = await asyncio.to_thread(self._learn, judged, step)
        sampled = sum(rollout.length for group in groups for rollout in group.rollouts)
        self.tokens += sampled
        self._record = {"step": step, "tokens": self.tokens, "phase": "grpo", **told(groups, judged), **learned}
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
            self._save_if_there_is_room()

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

    def _learn(self, judged: Judged, step: int) -> Record:
        """The updates of a step, and their numbers together."""
        recipe, records = self.recipe, list[dict[str, float]]()
        for number, samples in enumerate(_parts(judged.samples, recipe.policy.updates, f"{recipe.seed} {step}")):
            if not samples:
                continue
            # only the first update's policy is the one that was sampled from
            batches = self._batches(samples, step if number == 0 else -1)
            divisor = None
            if recipe.policy.normalise == "constant":
                divisor = float(len(samples) * max(effort.tokens for effort in recipe.efforts.values()))
            lr = recipe.lr.at(step * recipe.policy.updates + number, recipe.updates)
            records.append(self.learner.step(batches, PolicyLoss(recipe.policy, divisor), lr=lr))
            self._renew_reference()
        return _together(records)

    def _batches(self, samples: Sequence[Sample], version: int) -> list[PolicyBatch]:
        betas = {sample.domain: self.recipe.kl.of(sample.domain) for sample in samples}
        by_sequence = self.recipe.policy.normalise == "sequence"
        batches = [
            PolicyBatch.of(part, betas, version=version, by_sequence=by_sequence)
            for part in pack_samples(samples, self.recipe.micro)
        ]
        if self._reference is None or not any(betas.values()):
            return batches
        return [batch.with_reference(self._reference) for batch in batches]

    def _renew_reference(self) -> None:
        if self._reference is not None and self.learner.updates % self.recipe.kl.every == 0:
            self._reference.load_state_dict(self.learner.model.state_dict())
            self._reference_of = self.learner.updates

    def save(self) -> None:
        """Write the state in one piece, and drop the logs of rollouts that are learned."""
        self._saved = time.monotonic()
        header = {
            "recipe": self.recipe.to_dict(),
            "run_step": self.step,
            "sampled": self.tokens,
            "seconds": self.seconds,
            "reference": self._reference_of,
        }
        if self._reference is not None and not (file := self._reference_file(self._reference_of)).exists():
            reference = self._reference.state_dict()
            write_whole(file, lambda out: torch.save(reference, out))
        self.learner.save(self.folder, header)
        self._sources.forget(self.step)
        self._drop_references()

    def _save_if_there_is_room(self) -> None:
        try:
            self.save()
        except OSError as error:
            if not is_full(error):
                raise
            _log.warning("no state was written (%s); the one before stays, and the run goes on", error)

    def _reference_file(self, update: int) -> Path:
        return self.folder / f"reference-{update}.pt"

    def _drop_references(self) -> None:
        """All but the newest two: the state before may need the one before."""
        files = sorted(self.folder.glob("reference-*.pt"), key=lambda file: int(file.stem.partition("-")[2]))
        for file in files[:-2]:
            file.unlink(missing_ok=True)

    def _load(self) -> None:
        if self.recipe.kl.used:
            self._reference = copy.deepcopy(self.learner.model).requires_grad_(False)
        state = self.learner.load(self.folder)
        if state is None:
            return
        self.recipe.check_resume(state["recipe"], self.folder)
        self.step, self.tokens, self.seconds = state["run_step"], state["sampled"], state["seconds"]
        self._reference_of = state["reference"]
        if self._reference is not None:
            file = self._reference_file(self._reference_of)
            if not file.exists():
                raise ValueError(f"{file} is missing: the run cannot go on without the reference of its KL")
            self._reference.load_state_dict(load_state(file))


def _parts(samples: Sequence[Sample], count: int, seed: str) -> list[list[Sample]]:
    """Shuffled and dealt into as many updates."""
    if count == 1:
        return [list(samples)]
    order = list(samples)
    random.Random(f"updates {seed}").shuffle(order)
    return [order[i::count] for i in range(count)]


_MEANS = ("entropy", "kl", "clipped", "off_policy")


def _together(records: Sequence[dict[str, float]]) -> Record:
    """The numbers of a step's updates: means over learned tokens, sums of what is counted. Empty where nothing was
    learned."""
    if not records:
        return {"learned": 0.0, "skipped": 0.0}
    total: Counter[str] = Counter()
    for record in records:
        total.update(record)
    chosen, seconds = max(1.0, total["chosen"]), total["seconds"]
    found: Record = {name: total[name] / chosen for name in _MEANS}
    if total["fresh"]:
        found["mismatch"] = total["mismatch"] / total["fresh"]
    found |= {name: total[name] / len(records) for name in ("loss", "grad_norm")}
    found |= {"lr": records[-1]["lr"], "skipped": total["skipped"], "learned": total["chosen"]}
    return found | {"update_seconds": seconds, "tokens_per_second": total["tokens"] / seconds}


def told(groups: Sequence[Group], judged: Judged) -> Record:
    """What a step's rollouts were like: rewards, lengths, what was left out, the environment's own numbers."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    found: Record = {name: float(getattr(judged, name)) for name in ("broken", "stale", "equal", "small", "masked")}
    found |= {"samples_learned": float(len(judged.samples)), "length": fmean(r.length for r in rollouts)}
    found["finished"] = fmean(float(rollout.finished) for rollout in rollouts)
    if judged.rewards:
        found |= {"reward": fmean(judged.rewards), "reward_with_penalty": fmean(judged.penalised)}
    by_kind: dict[str, list[float]] = {}
    for rollout in rollouts:
        if rollout.reward is not None:
            by_kind.setdefault(f"reward.{rollout.prompt.domain}.{rollout.prompt.effort}", []).append(rollout.reward)
        for name, value in rollout.metrics.items():
            by_kind.setdefault(f"env.{name}", []).append(value)
    return found | {name: fmean(values) for name, values in sorted(by_kind.items())}
