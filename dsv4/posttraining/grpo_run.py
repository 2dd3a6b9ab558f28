"""A GRPO run: rollouts, judgement, updates against a reference that follows the policy (see `rollout_run`)."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch

from dsv4.files import write_whole
from dsv4.generation import WeightSink
from dsv4.model.transformer import Transformer
from dsv4.posttraining.grpo import Judged, PolicyLoss, judge
from dsv4.posttraining.learner import Learner
from dsv4.posttraining.policy import PolicyBatch, pack_samples
from dsv4.posttraining.recipe import GrpoRecipe
from dsv4.posttraining.rollout_run import Record, RolloutRun, Sources, parts, together
from dsv4.posttraining.selection import PromptPool, select
from dsv4.posttraining.types import Group, Prompt, Sample
from dsv4.training.states import load_state, on_host


class GrpoRun(RolloutRun[GrpoRecipe]):
    """A recipe of GRPO at work in a folder. Raises ValueError also where the file of the reference is missing."""

    phase: ClassVar[str] = "grpo"

    def __init__(self, recipe: GrpoRecipe, folder: Path, learner: Learner, sources: Sources, sink: WeightSink) -> None:
        self._reference: Transformer | None = None
        self._reference_of = 0
        self._pools: dict[int, PromptPool] = {}  # of the steps to come, as each finds it
        self._selected: dict[int, Record] = {}
        if recipe.kl.used:
            self._reference = copy.deepcopy(learner.model).requires_grad_(False)
        super().__init__(recipe, folder, learner, sources, sink)

    async def _rollouts(self, step: int) -> list[Group]:
        groups = await self._asked(step)
        more = self._sources.following(groups)
        return [*groups, *await self._sources.groups(more, step)] if more else groups

    async def _asked(self, step: int) -> list[Group]:
        """The groups of the prompts that are drawn or selected."""
        settings, wanted = self.recipe.selection, self.recipe.rollouts.prompts
        if not settings.used:
            return await super()._rollouts(step)
        pool = self._pools.get(step, PromptPool())

        async def ask(prompts: Sequence[Prompt]) -> list[Group]:
            return await self._sources.groups(prompts, step)

        selected = await select(self._sources.prompts.batch(step, self.recipe.asked), pool, wanted, settings, ask)
        # a state is written at self.step or later, and needs the pool as that step found it
        self._pools = {number: kept for number, kept in self._pools.items() if number >= self.step}
        self._pools[step + 1] = pool.after(selected.groups, settings) if settings.again else pool
        self._selected[step] = selected.told(self._pools[step + 1])
        return selected.groups

    def _learn(self, groups: Sequence[Group], step: int) -> Record:
        recipe = self.recipe
        judged = judge(groups, recipe.policy, recipe.efforts, step, before_penalty=recipe.selection.draws > 1)
        return {**told_of(judged), **self._selected.pop(step, {}), **self._update(judged, step)}

    def _update(self, judged: Judged, step: int) -> Record:
        """The updates of a step, and their numbers together."""
        recipe, records = self.recipe, list[dict[str, float]]()
        for number, samples in enumerate(parts(judged.samples, recipe.policy.updates, f"{recipe.seed} {step}")):
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
        return _numbers(records)

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
        if self._reference is not None and not (file := self._reference_file(self._reference_of)).exists():
            reference = on_host(self._reference.state_dict())
            write_whole(file, lambda out: torch.save(reference, out))
        super().save()
        self._drop_references()

    def _header(self) -> Record:
        pool = self._pools.get(self.step, PromptPool())
        return {**super()._header(), "reference": self._reference_of, "pool": list(pool.entries)}

    def _reference_file(self, update: int) -> Path:
        return self.folder / f"reference-{update}.pt"

    def _drop_references(self) -> None:
        """All but the newest two: the state before may need the one before."""
        files = sorted(self.folder.glob("reference-*.pt"), key=lambda file: int(file.stem.partition("-")[2]))
        for file in files[:-2]:
            file.unlink(missing_ok=True)

    def _resume(self, state: Mapping[str, Any]) -> None:
        super()._resume(state)
        self._reference_of = state["reference"]
        self._pools = {self.step: PromptPool(tuple(state["pool"]))}
        if self._reference is not None:
            file = self._reference_file(self._reference_of)
            if not file.exists():
                raise ValueError(f"{file} is missing: the run cannot go on without the reference of its KL")
            self._reference.load_state_dict(load_state(file))


_MEANS = ("entropy", "kl", "clipped", "off_policy")


def _numbers(records: Sequence[dict[str, float]]) -> Record:
    """The numbers of a step's updates: means over learned tokens, sums of what is counted. Empty where nothing was
    learned."""
    if not records:
        return {"learned": 0.0, "skipped": 0.0}
    total, found = together(records)
    chosen = max(1.0, total["chosen"])
    found |= {name: total[name] / chosen for name in _MEANS}
    if total["fresh"]:
        found["mismatch"] = total["mismatch"] / total["fresh"]
    return found | {"learned": total["chosen"]}


def told_of(judged: Judged) -> Record:
    """What was left out of a step's rollouts, and the rewards of the rest."""
    found: Record = {name: float(getattr(judged, name)) for name in ("broken", "stale", "equal", "small", "masked")}
    found["samples_learned"] = float(len(judged.samples))
    if judged.rewards:
        found |= {"reward": fmean(judged.rewards), "reward_with_penalty": fmean(judged.penalised)}
    return found
