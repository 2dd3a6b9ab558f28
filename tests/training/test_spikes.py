"""Clipping, and the detector: calm, noisy, drifting and broken runs (report 4.4)."""

import math
import random

import pytest
import torch

from dsv4.training.clipping import clip_gradients
from dsv4.training.spikes import SpikeDetector


def with_gradients(*grads: torch.Tensor) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    return params


def test_clipping_scales_the_joint_norm() -> None:
    grads = [torch.randn(3, 4), torch.randn(5)]
    norm = float(torch.cat([g.flatten() for g in grads]).norm())
    params = [*with_gradients(*grads), torch.nn.Parameter(torch.zeros(2))]
    assert clip_gradients(params, norm / 2) == pytest.approx(norm)
    for p, g in zip(params, grads, strict=False):
        torch.testing.assert_close(p.grad, g / 2)
    assert clip_gradients(params, norm) == pytest.approx(norm / 2)
    torch.testing.assert_close(params[0].grad, grads[0] / 2)
    assert clip_gradients([], 1.0) == 0
    with pytest.raises(ValueError, match="must be positive, got 0"):
        clip_gradients(params, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_told_and_scales_nothing(bad: float) -> None:
    params = with_gradients(torch.tensor([1.0, bad]), torch.tensor([3.0]))
    assert not math.isfinite(clip_gradients(params, 0.1))
    assert params[1].grad.item() == 3


def noisy(detector: SpikeDetector, steps: int, slope: float = 0.0) -> None:
    rng = random.Random(0)
    for step in range(steps):
        value = 3.0 - slope * step + rng.gauss(0, 0.1)
        assert detector.check(step, loss=value, grad_norm=abs(rng.gauss(1, 0.2))) is None


def test_noise_and_descent_are_ordinary_and_a_jump_is_not() -> None:
    detector = SpikeDetector()
    noisy(detector, 400, slope=0.004)
    assert detector.check(400, loss=1.4, grad_norm=1.0) is None
    spike = detector.check(401, loss=4.5, grad_norm=1.0)
    assert spike is not None
    assert (spike.step, spike.name, spike.value) == (401, "loss", 4.5)
    assert str(spike).startswith("step 401: loss 4.5 is above 3.12")
    spike = detector.check(402, loss=1.4, grad_norm=40.0)
    assert spike is not None
    assert spike.name == "grad_norm"


def test_spikes_do_not_become_ordinary() -> None:
    detector = SpikeDetector(window=32, minimum=8)
    noisy(detector, 40)
    limit = detector.limit("loss")
    for step in range(40, 100):
        assert detector.check(step, loss=9.0) is not None
    assert detector.limit("loss") == limit
    detector.reset()
    assert detector.check(100, loss=9.0) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_spikes_from_the_first_step(value: float) -> None:
    assert SpikeDetector().check(0, loss=value) is not None
    assert SpikeDetector().check(0, loss=1e9) is None


def test_a_very_calm_run_has_a_floor() -> None:
    detector = SpikeDetector(minimum=4)
    for step in range(10):
        detector.check(step, loss=2.0)
    assert detector.limit("loss") == pytest.approx(2.0 + 8 * 0.05 * 2)
    assert detector.check(10, loss=2.5) is None


def test_heavy_tailed_values_are_ordinary_up_to_twice_the_largest() -> None:
    detector = SpikeDetector(minimum=4)
    for step in range(10):
        detector.check(step, loss=1.0, grad_norm=1.0)
    detector.remember(grad_norm=5.0, loss=5.0)
    assert detector.limit("grad_norm") == 10.0
    assert detector.limit("loss") == pytest.approx(1.4)
    assert detector.check(10, loss=1.0, grad_norm=9.0) is None
    assert detector.check(11, loss=1.0, grad_norm=18.1) is not None


def test_values_that_are_not_finite_are_told_first() -> None:
    detector = SpikeDetector(minimum=4)
    for step in range(10):
        detector.check(step, loss=1.0, grad_norm=1.0)
    spike = detector.check(10, loss=9.0, grad_norm=math.inf)
    assert spike is not None
    assert spike.name == "grad_norm"


def test_state_comes_back() -> None:
    one, two = SpikeDetector(), SpikeDetector()
    noisy(one, 50)
    two.load_state_dict(one.state_dict())
    assert two.limit("loss") == one.limit("loss") < math.inf
    assert two.limit("grad_norm") == one.limit("grad_norm")


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"minimum must be in \[2, window 10\], got 20"):
        SpikeDetector(window=10, minimum=20)
    with pytest.raises(ValueError, match="threshold must be positive"):
        SpikeDetector(threshold=0)
