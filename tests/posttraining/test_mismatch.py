"""How far the engine's probabilities are from the learner's, through real rollouts with recorded choices.

bf16 and released numerics against an fp32 learner; the bar is a KL of 5e-4, with the choices replayed.
"""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from dsv4.cli.rollout_engine import rollout_engine
from dsv4.config import Mode
from dsv4.model.layers import BF16
from dsv4.model.transformer import Transformer
from dsv4.posttraining.environment import Verdict
from dsv4.posttraining.grpo import PolicyLoss
from dsv4.posttraining.policy import PolicyBatch
from dsv4.posttraining.replay import Replay
from dsv4.posttraining.rollout import RolloutRunner, RolloutSettings
from dsv4.posttraining.settings import PolicySettings
from dsv4.posttraining.types import Prompt, Sample
from dsv4.testing.tiny import tiny_config, tiny_model
from dsv4.training.batch import Totals
from dsv4.training.qat import FakeQuantised
from tests.posttraining.policies import SameVerdict

BAR = 5e-4
CONFIG = tiny_config(quantized=True, expert_dtype="fp4")
PROMPTS = [Prompt(f"p{i}", (0, *range(5 + i, 60 + i)), "d") for i in range(3)]


def learner() -> Transformer:
    """Small matrices, so that its routers are undecided: the choices differ easily."""
    return tiny_model(CONFIG)


def samples(numerics: Mode, **settings: float) -> list[Sample]:
    """What an engine in these numerics says, traced."""
    made = RolloutSettings(4, max_tokens=120, trace=True, **settings)  # type: ignore[arg-type]
    weights = learner().state_dict()
    with rollout_engine(CONFIG, weights, numerics, context=256, sequences=12) as (service, _):
        groups = asyncio.run(RolloutRunner(service, {"d": SameVerdict(Verdict(1.0))}, made, end=1).batch(PROMPTS, 0))
    assert all(rollout.trace is not None for group in groups for rollout in group.rollouts)
    return [Sample.of(rollout, 1.0) for group in groups for rollout in group.rollouts]


def mismatch(found: Sequence[Sample], *, replay: bool, quantised: bool = False) -> float:
    """k3 estimate of KL(engine || learner), a token. quantised: the learner computes with the released values, as after
    `qat_from`."""
    model = learner()
    if quantised:
        masters = dict(model.named_parameters())
        model = Transformer(CONFIG, BF16)
        model.load_state_dict(learner().state_dict())
    batch = PolicyBatch.of(found, {"d": 0.0})
    if not replay:
        batch = replace(batch, replay=Replay())
    with torch.no_grad(), FakeQuantised(model, masters=masters) if quantised else nullcontext():
        _, metrics = PolicyLoss(PolicySettings())(model, batch, Totals.of([batch]))
    return float(metrics["mismatch"]) / float(metrics["chosen"])


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.7}, {"top_k": 5}], ids=["all", "top_p", "top_k"])
def test_fp32_rollouts_have_no_mismatch(settings: dict[str, float]) -> None:
    value = mismatch(samples("fp32", **settings), replay=True)
    print(f"fp32 {settings}: {value:.2e}")
    # the mass of the kept ids is rounded once more than the softmax over them
    assert value == 0 if not settings else abs(value) < 1e-8


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.7}], ids=["all", "top_p"])
def test_bf16_rollouts_stay_below_the_bar_and_replay_helps(settings: dict[str, float]) -> None:
    found = samples("bf16", **settings)
    with_replay, without = mismatch(found, replay=True), mismatch(found, replay=False)
    print(f"bf16 {settings}: {with_replay:.2e} with replay, {without:.2e} without")
    assert with_replay <= BAR
    assert with_replay < without


def test_released_rollouts_stay_near_a_quantised_learner_and_far_from_a_plain_one() -> None:
    found = samples("release")
    near = mismatch(found, replay=True, quantised=True)
    loose, plain = mismatch(found, replay=False, quantised=True), mismatch(found, replay=True)
    print(f"release: {near:.2e} with replay, {loose:.2e} without, {plain:.2e} against a learner that is not quantised")
    assert near <= BAR
    assert near < loose
    assert near < plain
