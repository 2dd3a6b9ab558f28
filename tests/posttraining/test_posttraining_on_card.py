"""GRPO, distillation and low-rank adapters on a simulated card, with the engine's rollouts beside them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.checkpoint.adapter import read_adapter, write_adapter
from dsv4.cli.rollout_engine import rollout_engine
from dsv4.model.lora import adapters_of
from dsv4.model.transformer import Transformer
from dsv4.posttraining.base_model import BaseModel
from dsv4.posttraining.distill_run import DistillRun
from dsv4.posttraining.grpo_run import GrpoRun
from dsv4.posttraining.learner import Learner
from dsv4.posttraining.lora import adapted
from dsv4.posttraining.rollout import RolloutRunner, RolloutSettings
from dsv4.posttraining.rollout_run import Sources
from dsv4.posttraining.types import Prompt
from dsv4.testing.card import CARD, simulated_card
from dsv4.training.batch import Batch
from dsv4.training.settings import LoraSettings
from tests.posttraining import distill_runs, runs

SMALL: dict[str, Any] = {
    "efforts": {"high": {"tokens": 3}},
    "rollouts": {"prompts": 2, "group": 2, "replay": True},
    "optimizer": {"kind": "muon"},
}


class TwoPrompts:
    def batch(self, number: int, count: int) -> list[Prompt]:
        return [Prompt(f"{number}/{i}", (0, distill_runs.MARKS[d], 12), d) for i, d in enumerate("ab")]


def one_step(kind: type[Any], made: Any, folder: Path, numerics: Any = "fp32") -> tuple[dict[str, Any], Transformer]:
    """The numbers of a step with learner and engine on the card, and a state written and read again."""
    model = distill_runs.model().to(CARD)
    learner = Learner(model, optimizer=made.optimizer, qat_from=made.qat_from)
    with rollout_engine(model.config, learner.weights(folder), numerics, context=32, sequences=8, device=CARD) as (
        service,
        sink,
    ):
        settings = RolloutSettings(made.rollouts.group, max_tokens=3, seed=1, trace=made.replays)
        places: dict[str, Any] = {domain: runs.Small() for domain in "ab"}
        runner = RolloutRunner(service, places, settings, end=1, weights=sink, folder=folder / "rollouts")
        sources = Sources(TwoPrompts(), runner.batch, runner.forget)
        (record,) = runs.take(kind(made, folder, learner, sources, sink), 1)
    again = Learner(distill_runs.model().to(CARD), optimizer=made.optimizer, qat_from=made.qat_from)
    assert again.load(folder) is not None
    for name, value in again.model.state_dict().items():
        assert value.device == CARD
        assert torch.equal(value.cpu(), model.state_dict()[name].cpu())
    return record, model


@pytest.mark.parametrize("numerics", ["fp32", "release"])
def test_a_step_of_grpo(numerics: str, tmp_path: Path) -> None:
    made = runs.recipe(**{**SMALL, "rollouts": {**SMALL["rollouts"], "numerics": numerics}})
    with simulated_card():
        record, model = one_step(GrpoRun, made, tmp_path, numerics)
    if numerics == "fp32":
        assert record["mismatch"] < 1e-6  # engine and learner agree
    assert record["learned"] > 0
    assert {p.device for p in model.parameters()} == {CARD}


@pytest.mark.parametrize("objective", [{}, {"kind": "sampled", "reference": 0.1}])
def test_a_step_of_distillation(objective: dict[str, Any], tmp_path: Path) -> None:
    changes = {**SMALL, "rollouts": {"prompts": 2, "group": 1}, "objective": objective}
    made = distill_runs.recipe(tmp_path, **changes)
    with simulated_card():
        record, _ = one_step(DistillRun, made, tmp_path / "run")
    assert record["learned"] > 0
    assert record["kl.a"] > 0


def test_adapters_are_trained_and_written(tmp_path: Path) -> None:
    base = BaseModel.open(distill_runs.write(tmp_path / "base", distill_runs.model()))
    with simulated_card():
        model = adapted(base, LoraSettings(rank=2, alpha=32.0), 0, stored=False).to(CARD)
        adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        batch: Batch = distill_runs.documents("a").to(CARD)
        distill_runs.next_token(model, batch, distill_runs.Totals.of([batch]))[0].backward()
        adamw.step()
        write_adapter(tmp_path / "adapter", adapters_of(model), "base", 32.0)
        changed = {name: adapter.change().cpu() for name, adapter in adapters_of(model).items()}
    read = read_adapter(tmp_path / "adapter", base.config)
    for name, change in changed.items():
        assert change.abs().max() > 0
        torch.testing.assert_close(read.layer(name).change(), change)
