"""Stages, learning rate, batch ramp, MTP weight and QAT by tokens seen (report 4.2, 4.3)."""

import pytest

from dsv4.testing.tiny import tiny_config, tiny_model
from dsv4.training.schedule import BatchRamp, LearningRate, Phase, Schedule, Stage

STAGES = (
    Stage(1000, 64, Phase.DENSE),
    Stage(500, 128, Phase.WARMUP, lr=1e-3),
    Stage(1500, 128),
    Stage(1000, 256, yarn=True),
)
LR = LearningRate(peak=2e-4, final=2e-5, warmup=100, decay_from=2000, decay_to=3600)


def make(**changes: object) -> Schedule:
    return Schedule(**{"stages": STAGES, "lr": LR, "batch": BatchRamp(400, 100, 1000), **changes})  # type: ignore


def test_stages_follow_one_another() -> None:
    schedule = make()
    assert schedule.tokens == 4000
    seen = [(0, 0), (999, 0), (1000, 1), (1499, 1), (1500, 2), (2999, 2), (3000, 3), (3999, 3), (10**9, 3)]
    assert [schedule.at(tokens).stage_index for tokens, _ in seen] == [index for _, index in seen]
    assert schedule.at(1200).lr == 1e-3


def test_warm_up_constant_cosine() -> None:
    assert LR.at(0, 10) == pytest.approx(2e-5)
    assert LR.at(40, 10) == pytest.approx(1e-4)
    assert LR.at(90, 10) == LR.at(100, 10) == LR.at(1999, 10) == 2e-4
    assert LR.at(2800, 10) == pytest.approx((2e-4 + 2e-5) / 2)
    assert LR.at(3600, 10) == LR.at(10**6, 10) == 2e-5
    rates = [LR.at(tokens, 10) for tokens in range(2000, 3601, 50)]
    assert rates == sorted(rates, reverse=True)


def test_batches_grow_and_hold_at_least_a_sequence() -> None:
    schedule = make()
    assert [schedule.at(t).batch_tokens for t in (0, 500, 999, 1000, 3000)] == [100, 250, 399, 400, 400]
    assert make(batch=BatchRamp(200)).at(3000).batch_tokens == 256
    assert BatchRamp(7).at(0) == 7


def test_the_mtp_weight_falls_when_the_decay_starts_and_qat_starts_late() -> None:
    schedule = make(qat_from=3500)
    assert [schedule.at(t).mtp_weight for t in (0, 1999, 2000, 3999)] == [0.3, 0.3, 0.1, 0.1]
    assert [schedule.at(t).qat for t in (0, 3499, 3500)] == [False, False, True]
    assert not make().at(3999).qat


def test_yarn_enters_with_its_stage() -> None:
    model = tiny_model(tiny_config())
    scaled = model.rotary.long_P.clone()
    plain = model.rotary.plain_P.clone()
    model.use_yarn(make().at(0).stage.yarn)
    early = model.rotary.long_P.clone()
    assert not early.equal(scaled)
    theta = model.config.compress_rope_theta
    assert early.tolist() == pytest.approx([theta ** (-i / 8) for i in range(8)])
    model.use_yarn(make().at(3000).stage.yarn)
    assert model.rotary.long_P.equal(scaled)
    assert model.rotary.plain_P.equal(plain)
    assert model.config.yarn is not None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Stage(0, 64), "stage.tokens must be positive, got 0"),
        (lambda: Stage(5, 64, lr=-1.0), "stage.lr must be positive, got -1.0"),
        (lambda: LearningRate(1e-4, 2e-4, 0, 1, 2), r"lr.final must be in \[0, lr.peak 0.0001\], got 0.0002"),
        (lambda: LearningRate(1e-4, 1e-5, 5, 1, 2), "must ascend from 0, got 5, 1, 2"),
        (lambda: BatchRamp(10, 20), r"batch.start must be in \[0, batch.full 10\], got 20"),
        (lambda: make(stages=()), "stages must not be empty"),
        (lambda: make(stages=(Stage(5, 64), Stage(5, 32))), r"stages\[1\].length must be at least 64, got 32"),
        (
            lambda: make(stages=(Stage(5, 64), Stage(5, 64, Phase.DENSE))),
            "phase must not go back to dense after sparse",
        ),
        (lambda: make(stages=(Stage(5, 64, yarn=True), Stage(5, 64))), r"stages\[1\].yarn must stay on"),
        (lambda: make(qat_from=4000), r"qat_from must be in \[0, 4000\), got 4000"),
        (lambda: make().at(-1), "tokens must be at least 0, got -1"),
    ],
)
def test_contradictions_are_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
