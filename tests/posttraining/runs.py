"""A GRPO run small enough for tests: a tiny random model, and a task that is judged by looking at the tokens."""

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsv4.encoding import Tokenizer
from dsv4.engine import Engine
from dsv4.engine.service import EngineService
from dsv4.engine.weights import EngineWeights
from dsv4.generation import FinishReason
from dsv4.model.init import init_weights
from dsv4.model.layers import FP32, Numerics
from dsv4.model.transformer import Transformer
from dsv4.posttraining.environment import Environment, More, Verdict
from dsv4.posttraining.grpo_run import GrpoRun
from dsv4.posttraining.learner import Learner
from dsv4.posttraining.recipe import GrpoRecipe
from dsv4.posttraining.rollout import RolloutRunner, RolloutSettings
from dsv4.posttraining.rollout_run import RolloutRun, Sources
from dsv4.posttraining.types import Prompt
from dsv4.testing.tiny import tiny_config

TIMES = ("seconds", "per_second")  # of a record, different in every run


def take(made: RolloutRun, steps: int) -> list[dict[str, Any]]:
    """So many steps, and a state."""
    found: list[dict[str, Any]] = []

    def tell(record: dict[str, Any]) -> bool:
        found.append(record)
        return len(found) < steps

    asyncio.run(made.run(tell))
    return found


def numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if not name.endswith(TIMES)}


class Small:
    """An answer is worth the share of its tokens that are below 20. odd: it is worth 1 where the sum of its tokens is
    odd, and 0 otherwise, so that many groups compare nothing whatever the model says."""

    def __init__(self, odd: bool = False) -> None:
        self.odd = odd

    def start(self, prompt: Prompt) -> "Small":
        return Small(self.odd)

    async def turn(self, tokens: Sequence[int], finish: FinishReason) -> More | None:
        self.share = sum(tokens) % 2 if self.odd else sum(token < 20 for token in tokens) / max(1, len(tokens))
        return None

    def replay(self, tokens: Sequence[int], more: More) -> None:
        raise AssertionError("one turn")

    async def verdict(self, finish: FinishReason) -> Verdict:
        return Verdict(float(self.share))


def environment(tokenizer: Tokenizer, *, odd: bool = False) -> Environment:
    """For recipes."""
    return Small(odd)


def prompt(rng: random.Random, tokenizer: Tokenizer) -> Prompt:
    """For recipes."""
    return Prompt(f"{rng.random()}", (0, *(rng.randrange(2, 97) for _ in range(6))), "d")


class RandomPrompts:
    def batch(self, number: int, count: int) -> list[Prompt]:
        rng = random.Random(number)
        return [Prompt(f"{number}/{i}", (0, *(rng.randrange(2, 97) for _ in range(6))), "d") for i in range(count)]


def model(numerics: Numerics = FP32) -> Transformer:
    return init_weights(Transformer(tiny_config(), numerics), 0)


def recipe(**changes: Any) -> GrpoRecipe:
    raw: dict[str, Any] = {
        "name": "test",
        "init": "nowhere",
        "steps": 8,
        "prompts": {"path": "nothing:none"},
        "lr": {"peak": 3e-3},
        "efforts": {"high": {"tokens": 12}},
        "rollouts": {"prompts": 8, "group": 8},
        "optimizer": {"kind": "adamw"},
    }
    return GrpoRecipe.from_dict({**raw, **changes})


@contextmanager
def run(made: GrpoRecipe, folder: Path, odd: bool = False) -> Iterator[GrpoRun]:
    """A run with an engine of its own. odd: as of Small."""
    service = EngineService(Engine(model(), context_length=64, sequences=64))
    sink = EngineWeights(service)
    settings = RolloutSettings(made.rollouts.group, max_tokens=made.efforts["high"].tokens, seed=made.seed)  # type: ignore[index]
    runner = RolloutRunner(service, {"d": Small(odd)}, settings, end=1, weights=sink, folder=folder / "rollouts")
    try:
        learner = Learner(model(), optimizer=made.optimizer)
        yield GrpoRun(made, folder, learner, Sources(RandomPrompts(), runner.batch, runner.forget), sink)
    finally:
        service.close()
