"""Two specialists that each know one table by heart, and distillation runs that bring both into one student."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv4.checkpoint import save_checkpoint
from dsv4.checkpoint.names import FP32
from dsv4.engine import Engine
from dsv4.engine.service import EngineService
from dsv4.engine.weights import EngineWeights
from dsv4.model.init import init_weights
from dsv4.model.transformer import Transformer
from dsv4.posttraining.distill_recipe import DistillRecipe
from dsv4.posttraining.distill_run import DistillRun
from dsv4.posttraining.learner import Learner
from dsv4.posttraining.rollout import RolloutRunner, RolloutSettings
from dsv4.posttraining.rollout_run import Sources
from dsv4.posttraining.types import Prompt
from dsv4.testing.tiny import tiny_config
from dsv4.training.batch import Batch, Totals
from dsv4.training.loss import compute_loss
from dsv4.training.settings import OptimizerSettings
from tests.posttraining import runs

ADAM = OptimizerSettings(kind="adamw")
END, KEYS = 1, range(10, 26)
MARKS = {"a": 3, "b": 4}  # the token that names the table


def model() -> Transformer:
    """The random model of all runs."""
    config = tiny_config(num_hidden_layers=2, compress_ratios=(0, 4), num_nextn_predict_layers=0)
    return init_weights(Transformer(config), 0)


def table(domain: str) -> dict[int, int]:
    """What is asked for each key: another permutation in each domain."""
    values = list(range(40, 40 + len(KEYS)))
    random.Random(domain).shuffle(values)
    return dict(zip(KEYS, values, strict=True))


def documents(domain: str) -> Batch:
    """Every key with its value."""
    rows = [[0, MARKS[domain], key, value, END] for key, value in table(domain).items()]
    learn = torch.tensor([0.0, 0, 0, 1, 1]).repeat(len(rows))
    return Batch(torch.tensor(rows).flatten(), (5,) * len(rows), learn)


def right(asked: Transformer, domain: str) -> float:
    """The share of keys whose value is the first guess."""
    batch = documents(domain)
    with torch.no_grad():
        x = asked.hidden(batch.tokens_T, asked.pack(list(batch.lengths)))
        guesses = asked.logits(x[2::5]).argmax(1)
    return float((guesses == batch.tokens_T[3::5]).float().mean())


def next_token(taught: Transformer, batch: Batch, totals: Totals) -> tuple[Tensor, dict[str, Tensor]]:
    return compute_loss(taught, batch, totals=totals).total, {}


@cache
def specialist(domain: str) -> Transformer:
    """That model, taught one table. Callers must not change it."""
    learner = Learner(model(), optimizer=ADAM)
    for _ in range(40):
        learner.step([documents(domain)], next_token, lr=5e-3)
    return learner.model


def write(folder: Path, made: Transformer) -> Path:
    save_checkpoint(folder, made.config, made.state_dict(), FP32)
    return folder


class TablePrompts:
    """Both domains in turn."""

    def batch(self, number: int, count: int) -> list[Prompt]:
        rng = random.Random(number)
        asked = [(domain, rng.choice(KEYS)) for _ in range(count // 2) for domain in MARKS]
        return [Prompt(f"{number}/{i}", (0, MARKS[d], key), d) for i, (d, key) in enumerate(asked)]


def recipe(folder: Path, **changes: Any) -> DistillRecipe:
    """With the specialists and the initial student in `folder`."""
    for domain in MARKS:
        if not (folder / domain).exists():
            write(folder / domain, specialist(domain))
    if not (folder / "init").exists():
        write(folder / "init", model())
    raw: dict[str, Any] = {
        "name": "test",
        "init": str(folder / "init"),
        "steps": 40,
        "prompts": {"path": "nothing:none"},
        "teachers": {domain: {"path": str(folder / domain)} for domain in MARKS},
        "lr": {"peak": 5e-3},
        "efforts": {"high": {"tokens": 2}},
        "rollouts": {"prompts": 32, "group": 1},
        "optimizer": {"kind": "adamw"},
        "cache": {"resident": 2},
    }
    return DistillRecipe.from_dict({**raw, **changes})


@contextmanager
def run(made: DistillRecipe, folder: Path) -> Iterator[DistillRun]:
    """A run with an engine of its own."""
    service = EngineService(Engine(model(), context_length=64, sequences=64))
    sink = EngineWeights(service)
    settings = RolloutSettings(made.rollouts.group, max_tokens=made.efforts["high"].tokens, seed=made.seed)  # type: ignore[index]
    environments: Mapping[str, Any] = {domain: runs.Small() for domain in MARKS}
    runner = RolloutRunner(service, environments, settings, end=END, weights=sink, folder=folder / "rollouts")
    try:
        learner = Learner(model(), optimizer=made.optimizer, qat_from=made.qat_from)
        yield DistillRun(made, folder, learner, Sources(TablePrompts(), runner.batch, runner.forget), sink)
    finally:
        service.close()
