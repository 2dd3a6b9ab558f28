"""A distillation run: the student's rollouts, the teachers' states on them, updates (see `rollout_run`)."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import torch

from dsv4.generation import WeightSink
from dsv4.posttraining.distill import DistillObjective, distill_batches, with_rows
from dsv4.posttraining.distill_recipe import DistillRecipe
from dsv4.posttraining.distill_tokens import choose, shares, told_of
from dsv4.posttraining.learner import Learner
from dsv4.posttraining.rollout_run import Record, RolloutRun, Sources, parts, together
from dsv4.posttraining.teachers import Teachers
from dsv4.posttraining.types import Group, Prompt

_WIDTHS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class DistillRun(RolloutRun[DistillRecipe]):
    """A recipe of distillation at work in a folder. Raises ValueError also for a teacher that is no model, or that has
    another vocabulary or tokenizer."""

    phase: ClassVar[str] = "distill"

    def __init__(
        self, recipe: DistillRecipe, folder: Path, learner: Learner, sources: Sources, sink: WeightSink
    ) -> None:
        config, cache = learner.model.config, recipe.cache

        def opened(paths: Sequence[str], place: str) -> Teachers:
            return Teachers(
                [Path(path) for path in paths],
                config.vocab_size,
                folder / place,
                student=sources.tokenizer,
                numerics=cache.numerics,
                width=_WIDTHS[cache.width],
                resident=cache.resident,
                device=learner.model.device,
            )

        self.teachers = opened(recipe.paths, "teachers")
        reference = opened([recipe.init], "reference") if recipe.objective.reference else None
        self._objective = DistillObjective(
            recipe.objective, tuple(recipe.teachers), self.teachers, reference, recipe.tokens.without
        )
        super().__init__(recipe, folder, learner, sources, sink)

    async def _rollouts(self, step: int) -> list[Group]:
        prompts = self._sources.prompts.batch(step, self.recipe.rollouts.prompts)
        for prompt in prompts:
            self.recipe.check_domain(prompt)
        own, foreign = _dealt(prompts, self.recipe.objective.answered_by_teachers)
        groups = await self._sources.groups(own, step) if own else []
        numbers = self.recipe.numbers
        for teacher in sorted({numbers[prompt.domain] for prompt in foreign}):
            await self._sink.publish(self.teachers.weights(teacher), step)
            groups += await self._sources.groups([p for p in foreign if numbers[p.domain] == teacher], step)
        if foreign:
            await self._sink.publish(self.learner.weights(self.folder), step)
        return groups

    def _learn(self, groups: Sequence[Group], step: int) -> Record:
        recipe, records = self.recipe, list[dict[str, float]]()
        chosen = choose(groups, recipe.tokens, recipe.numbers)
        weights = {domain: teacher.weight for domain, teacher in recipe.teachers.items()}
        updates = recipe.objective.updates
        for number, samples in enumerate(parts(chosen.samples, updates, f"{recipe.seed} {step}")):
            if not samples:
                continue
            factors = shares(samples, weights, recipe.objective.normalise)
            batches = distill_batches(samples, factors, tuple(recipe.teachers), recipe.micro)
            batches = with_rows(batches, self.teachers, self._objective.reference)
            lr = recipe.lr.at(step * updates + number, recipe.updates)
            records.append(self.learner.step(batches, self._objective, lr=lr))
        self.teachers.clear()
        if self._objective.reference is not None:
            self._objective.reference.clear()
        return {**told_of(chosen), **_rewards(groups), **self._numbers(records)}

    def _numbers(self, records: Sequence[dict[str, float]]) -> Record:
        """The numbers of a step's updates: means over learned tokens."""
        if not records:
            return {"learned": 0.0, "skipped": 0.0}
        total, found = together(records)
        count = max(1.0, total["chosen"])
        found["entropy"] = total["entropy"] / count
        found["kl"] = sum(total[f"kl.{domain}"] for domain in self.recipe.teachers) / count
        for domain in self.recipe.teachers:
            if total[f"count.{domain}"]:
                found[f"kl.{domain}"] = total[f"kl.{domain}"] / total[f"count.{domain}"]
        if self._objective.reference is not None:
            found["reference_kl"] = total["reference_kl"] / count
        return found | {"learned": total["chosen"]}


def _dealt(prompts: Sequence[Prompt], share: float) -> tuple[list[Prompt], list[Prompt]]:
    """Those that the student answers, and those that the teachers answer: evenly spread, so that no domain is left
    out where they come in order."""
    foreign = {i for i in range(len(prompts)) if int((i + 1) * share) > int(i * share)}
    return [p for i, p in enumerate(prompts) if i not in foreign], [p for i, p in enumerate(prompts) if i in foreign]


def _rewards(groups: Sequence[Group]) -> Record:
    judged = [rollout.reward for group in groups for rollout in group.rollouts if rollout.reward is not None]
    return {"reward": fmean(judged)} if judged else {}
