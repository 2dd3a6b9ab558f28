"""Mixture of experts: routing weights, the clamp, and running experts against a loop (report 2.1)."""

import math

import pytest
import torch
from torch import Tensor

from dsv4.kernels import moe


def test_affinity_is_the_root_of_softplus() -> None:
    x = torch.tensor([-20.0, -1.0, 0.0, 3.0, 50.0])
    wanted = torch.tensor([math.sqrt(math.log1p(math.exp(v))) for v in x.tolist()])
    torch.testing.assert_close(moe.affinity(x), wanted, atol=1e-6, rtol=1e-6)


def test_the_bias_only_chooses() -> None:
    score = torch.tensor([[0.9, 0.8, 0.1, 0.2]])
    bias = torch.tensor([0.0, -5.0, 3.0, 0.0])
    ids = moe.choose_experts(score, bias, 2)
    assert sorted(ids[0].tolist()) == [0, 2]
    weight = dict(zip(ids[0].tolist(), moe.expert_weights(score, ids, 1.0)[0].tolist(), strict=True))
    assert weight == pytest.approx({0: 0.9, 2: 0.1})


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.5])
def test_weights_sum_to_the_scale(scale: float) -> None:
    score = moe.affinity(torch.randn(9, 8))
    ids = moe.choose_experts(score, torch.randn(8), 3)
    weight = moe.expert_weights(score, ids, scale)
    torch.testing.assert_close(weight.sum(1), torch.full((9,), scale), atol=1e-6, rtol=0)
    torch.testing.assert_close(weight / weight[:, :1], score.gather(1, ids) / score.gather(1, ids[:, :1]))


def test_choice_is_the_k_largest_and_distinct() -> None:
    score, bias = torch.rand(20, 8), torch.randn(8)
    for ids, row in zip(moe.choose_experts(score, bias, 3).tolist(), (score + bias).tolist(), strict=True):
        assert set(ids) == set(sorted(range(8), key=lambda e: -row[e])[:3])


def test_the_gate_is_clamped_from_above_and_the_linear_part_on_both_sides() -> None:
    gate, up = torch.tensor([-50.0, -3.0, 0.5, 50.0]), torch.tensor([-50.0, 0.5, 3.0, 50.0])
    for g in gate:
        for u in up:
            capped = min(float(g), 2.0)
            wanted = capped / (1 + math.exp(-capped)) * max(-2.0, min(2.0, float(u)))
            got = float(moe.clamped_swiglu(g[None], u[None], 2.0))
            assert got == pytest.approx(wanted, abs=1e-6)


def test_limit_0_means_no_clamp() -> None:
    gate, up = torch.randn(5, 4) * 100, torch.randn(5, 4) * 100
    wanted = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(moe.clamped_swiglu(gate, up, 0.0), wanted, atol=1e-30, rtol=1e-6)
    assert not torch.allclose(moe.clamped_swiglu(gate, up, 10.0), wanted)


def test_the_clamp_is_computed_in_fp32() -> None:
    gate, up = torch.randn(50).bfloat16(), torch.randn(50).bfloat16()
    out = moe.clamped_swiglu(gate, up, 1.0)
    # two implementations of exp may differ in the last digit; bfloat16 would differ in the third
    torch.testing.assert_close(out, moe.clamped_swiglu(gate.float(), up.float(), 1.0), atol=1e-30, rtol=1e-6)


def experts_of(count: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, dim, dim, dtype=dtype)


@pytest.mark.parametrize(("tokens", "experts", "k"), [(1, 4, 2), (7, 5, 3), (40, 8, 6), (6, 3, 3)])
def test_run_experts_equals_the_loop(tokens: int, experts: int, k: int) -> None:
    x, matrices = torch.randn(tokens, 6), experts_of(experts, 6)
    ids = torch.rand(tokens, experts).argsort(1)[:, :k]
    weight = torch.rand(tokens, k)
    out = moe.run_experts(x, ids, weight, experts, lambda e, y, w: (y @ matrices[e]).tanh() * w)
    wanted = torch.zeros(tokens, 6)
    for t in range(tokens):
        for i in range(k):
            wanted[t] += weight[t, i] * (x[t] @ matrices[ids[t, i]]).tanh()
    torch.testing.assert_close(out, wanted, atol=2e-6, rtol=0)


def test_experts_without_tokens_are_not_run() -> None:
    called = []

    def run(expert: int, x: Tensor, weight: Tensor) -> Tensor:
        called.append((expert, len(x)))
        return x * weight

    moe.run_experts(torch.randn(3, 2), torch.tensor([[4, 1], [1, 4], [1, 6]]), torch.rand(3, 2), 8, run)
    assert called == [(1, 3), (4, 2), (6, 1)]


@pytest.mark.parametrize("dim", [1, 5, 64])
def test_experts_are_added_in_the_order_of_the_ids(dim: int) -> None:
    values = [2.0**30, 1.0, -(2.0**30), 3.0, 2.0**29, -(2.0**29)]  # fp32 sums of these depend on the order
    ids = torch.stack([torch.randperm(6) for _ in range(30)])
    ones = torch.ones(30, 6)
    out = moe.run_experts(torch.zeros(30, dim), ids, ones, 6, lambda e, y, w: y + values[e])
    for row, order in zip(out, ids.tolist(), strict=True):
        total = torch.zeros(())
        for expert in order:
            total = total + values[expert]
        assert torch.equal(row, total.expand(dim))


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    x, scale = torch.randn(20, 6), torch.randn(8)
    ids, weight = torch.rand(20, 8).argsort(1)[:, :3], torch.rand(20, 3)

    def run(expert: int, y: Tensor, w: Tensor) -> Tensor:
        return y * scale[expert] * w

    together = moe.run_experts(x, ids, weight, 8, run)
    for t in range(20):
        part = slice(t, t + 1)
        assert torch.equal(moe.run_experts(x[part], ids[part], weight[part], 8, run), together[part])


def test_low_precision_experts_are_summed_in_fp32() -> None:
    x, ids = torch.ones(1, 1).bfloat16(), torch.tensor([[0, 1]])
    values = [1.0, 2.0**-9]  # their sum does not fit bfloat16
    out = moe.run_experts(x, ids, torch.ones(1, 2), 2, lambda e, y, w: (y * values[e]).bfloat16())
    assert out.dtype == torch.float32
    assert out.item() == 1 + 2.0**-9


def test_gradients() -> None:
    x, matrices = torch.randn(4, 3, dtype=torch.float64), experts_of(5, 3, torch.float64)
    logits = torch.randn(4, 5, dtype=torch.float64)
    ids = torch.tensor([[0, 3], [3, 1], [4, 0], [0, 1]])

    def run(x_TD: Tensor, logits_TE: Tensor, matrices_EDD: Tensor) -> Tensor:
        weight = moe.expert_weights(moe.affinity(logits_TE), ids, 1.5)

        def expert(e: int, y: Tensor, w: Tensor) -> Tensor:
            return moe.clamped_swiglu(y @ matrices_EDD[e], y, 0.9) * w

        return moe.run_experts(x_TD, ids, weight, 5, expert)

    inputs = [t.requires_grad_() for t in (x, logits, matrices)]
    assert torch.autograd.gradcheck(run, inputs)
