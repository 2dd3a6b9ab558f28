"""Which weights generate which batch: in turn and one ahead, whatever takes longer, also after a kill."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dsv4.posttraining.rollout import RolloutRunner, RolloutSettings
from dsv4.posttraining.steps import run_steps
from dsv4.posttraining.types import Group
from dsv4.testing.stub import StubGenerator
from tests.posttraining.policies import END, Killed, Lengths, prompts, run, token_at


class Trainer:
    """A policy whose tokens depend on the weights (a number), and training that adds what it reads to them."""

    def __init__(self, folder: Path | None = None, *, slow: str = "", start: int = 0, weights: int = 0) -> None:
        self.events: list[str] = []
        self.version, self.weights, self.slow = start, weights, slow
        self.kept: dict[int, int] = {start: weights}
        self.killed_at = -1
        settings = RolloutSettings(group=2, max_tokens=100)
        self.runner = RolloutRunner(
            StubGenerator(self._script), {"math": Lengths()}, settings, end=END, folder=folder, weights=self
        )
        self._published = weights

    def _script(self, prompt: Sequence[int], params: Any) -> list[int]:
        self.killed_at -= 1
        if self.killed_at == 0:
            raise Killed
        own = params.seed + self._published
        return [*(token_at(own, position, 10**9) for position in range(len(prompt), 3 + own % 7)), END]

    async def generate(self, step: int) -> Sequence[Group]:
        self.events.append(f"generate {step} with {self.version}")
        await asyncio.sleep(0.02 * (self.slow == "generate"))
        return await self.runner.batch(prompts(3), step)

    async def learn(self, step: int, groups: Sequence[Group]) -> Mapping[str, Any]:
        self.events.append(f"learn {step}")
        await asyncio.sleep(0.02 * (self.slow == "learn"))
        self.weights += sum(sum(rollout.tokens) for group in groups for rollout in group.rollouts)
        return {"w": self.weights}

    async def keep(self, step: int) -> None:
        self.kept[step] = self.weights

    async def publish(self, weights: Mapping[str, Any], version: int) -> None:
        self.events.append(f"publish {version}")
        self.version, self._published = version, weights["w"]

    def run(self, steps: range, ahead: bool) -> int:
        run(run_steps(steps, self.generate, self.learn, self.publish, keep=self.keep, ahead=ahead))
        return self.weights


def test_in_turn_every_batch_has_the_newest_weights() -> None:
    trainer = Trainer()
    trainer.run(range(2), ahead=False)
    assert trainer.events == [
        "generate 0 with 0", "learn 0", "publish 1", "generate 1 with 1", "learn 1", "publish 2",
    ]  # fmt: skip


@pytest.mark.parametrize("slow", ["", "learn", "generate"])
def test_one_ahead_a_batch_is_generated_while_the_one_before_is_learned_from(slow: str) -> None:
    trainer = Trainer(slow=slow)
    trainer.run(range(3), ahead=True)
    order = [event for event in trainer.events if not event.startswith("learn")]
    assert order == [
        "generate 0 with 0", "generate 1 with 0", "publish 1", "generate 2 with 1", "publish 2", "publish 3",
    ]  # fmt: skip
    assert trainer.weights == Trainer().run(range(3), ahead=True)
    assert trainer.weights != Trainer().run(range(3), ahead=False)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, ahead: bool) -> None:
    expected = Trainer().run(range(5), ahead)
    step, weights, kills = 0, 0, 0
    while True:
        trainer = Trainer(tmp_path / str(ahead), start=step, weights=weights)
        trainer.killed_at = 5
        try:
            trainer.run(range(step, 5), ahead)
            break
        except Killed:
            kills += 1
            step = max(trainer.kept)
            weights = trainer.kept[step]
    assert kills > 3
    assert trainer.weights == expected


def test_what_fails_stops_the_rest() -> None:
    trainer, cancelled = Trainer(), []

    async def learn(step: int, groups: Sequence[Group]) -> Mapping[str, Any]:
        await asyncio.sleep(0.01)
        raise RuntimeError("no memory")

    async def generate(step: int) -> Sequence[Group]:
        if step == 0:
            return []
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(step)
            raise
        return []

    with pytest.raises(RuntimeError, match="no memory"):
        run(run_steps(range(3), generate, learn, trainer.publish, ahead=True))
    assert cancelled == [1]
