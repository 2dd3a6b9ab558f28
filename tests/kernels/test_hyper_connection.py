"""Hyper-connections: recorded mixes, doubly stochastic matrices, all implementations, and no kept graphs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsv4.kernels import hyper_connection as hc
from dsv4.kernels.hyper_connection import reference
from dsv4.testing.graph import graph_is_freed

IMPLEMENTATIONS = ["torch", "reference"]
STREAMS, DIM, ITERATIONS, EPS = 4, 3, 20, 1e-6
MIXES = (2 + STREAMS) * STREAMS


def split(mixes: Tensor, scale: Tensor, base: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return hc.split_sinkhorn(mixes, scale, base, STREAMS, ITERATIONS, EPS)


def enter(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    return hc.enter(x, fn, scale, base, iterations=ITERATIONS, eps=EPS, norm_eps=EPS, impl=impl)


def random_mixes(tokens: int = 6, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype) for shape in ((tokens, MIXES), (3,), (MIXES,))]


def random_inputs(tokens: int = 6, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = (tokens, STREAMS, DIM), (MIXES, STREAMS * DIM), (3,), (MIXES,)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def test_recorded_split(reference_data: Path) -> None:
    ops = load_file(reference_data / "reference" / "ops.safetensors")
    parts = split(ops["hc.mixes"].flatten(0, 1), ops["hc.scale"], ops["hc.base"])
    for name, part in zip(("pre", "post", "comb"), parts, strict=True):
        torch.testing.assert_close(part, ops[f"hc.{name}"].flatten(0, 1), atol=1e-6, rtol=0)


def test_gates_are_in_range() -> None:
    pre, post, _ = split(*random_mixes(200))
    assert 0 < pre.min() < pre.max() < 1 + 2 * EPS
    assert 0 < post.min() < 1 < post.max() < 2


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_comb_is_doubly_stochastic(impl: str) -> None:
    _, _, comb = enter(*random_inputs(200), impl)
    assert comb.min() >= 0
    for axis in (1, 2):
        torch.testing.assert_close(comb.sum(axis), torch.ones(200, STREAMS), atol=1e-3, rtol=0)


@pytest.mark.parametrize("tokens", [1, 5])
def test_implementations_agree_in_values_and_gradients(tokens: int) -> None:
    inputs = random_inputs(tokens)
    weights = [torch.randn(tokens, DIM), torch.randn(tokens, STREAMS), torch.randn(tokens, STREAMS, STREAMS)]
    results = []
    for impl in IMPLEMENTATIONS:
        leaves = [x.clone().requires_grad_() for x in inputs]
        parts = enter(*leaves, impl)
        sum((part * w).sum() for part, w in zip(parts, weights, strict=True)).backward()
        results.append([*parts, *(leaf.grad for leaf in leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gradients_of_the_way_in(impl: str) -> None:
    inputs = [x.requires_grad_() for x in random_inputs(2, torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: enter(*x, impl), inputs)


def test_gradients_of_mix_collapse_and_combine() -> None:
    x, fn = torch.randn(2, STREAMS, 3, dtype=torch.float64), torch.randn(5, STREAMS * 3, dtype=torch.float64)
    pre, comb = (torch.randn(2, *[STREAMS] * n, dtype=torch.float64) for n in (1, 2))
    y = torch.randn(2, 3, dtype=torch.float64)
    for t in (x, fn, pre, comb, y):
        t.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: reference.mix(a, b, EPS), [x, fn])
    assert torch.autograd.gradcheck(reference.collapse, [x, pre])
    assert torch.autograd.gradcheck(hc.combine, [y, x, pre, comb])


def test_mix_is_a_projection_of_the_normalised_streams() -> None:
    x, fn = torch.randn(5, STREAMS, 6), torch.randn(MIXES, STREAMS * 6)
    flat = x.flatten(1).double()
    normed = flat / (flat.square().mean(1, keepdim=True) + EPS).sqrt()
    torch.testing.assert_close(reference.mix(x, fn, EPS).double(), normed @ fn.double().T, atol=1e-5, rtol=0)


def test_collapse_equals_the_loop() -> None:
    x, pre = torch.randn(5, STREAMS, 6), torch.rand(5, STREAMS)
    wanted = torch.stack([sum(pre[t, s] * x[t, s] for s in range(STREAMS)) for t in range(5)])
    torch.testing.assert_close(reference.collapse(x, pre), wanted, atol=1e-6, rtol=0)


def test_combine_sums_over_the_first_axis_of_comb() -> None:
    y, x = torch.randn(3, 5), torch.randn(3, STREAMS, 5)
    post, comb = torch.rand(3, STREAMS), torch.rand(3, STREAMS, STREAMS)
    wanted = torch.zeros(3, STREAMS, 5)
    for t in range(3):
        for k in range(STREAMS):
            wanted[t, k] = post[t, k] * y[t]
            for j in range(STREAMS):
                wanted[t, k] += comb[t, j, k] * x[t, j]
    torch.testing.assert_close(hc.combine(y, x, post, comb), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_equal_streams_stay_as_they_are(impl: str) -> None:
    _, post, comb = enter(*random_inputs(), impl)
    x = torch.randn(6, 1, 7).expand(6, STREAMS, 7)
    torch.testing.assert_close(hc.combine(torch.zeros(6, 7), x, post, comb), x, atol=1e-3, rtol=1e-3)


def test_streams_keep_their_dtype() -> None:
    x = torch.randn(2, STREAMS, 5).bfloat16()
    pre, comb = torch.rand(2, STREAMS), torch.rand(2, STREAMS, STREAMS)
    assert reference.collapse(x, pre).dtype == torch.bfloat16
    assert hc.combine(x[:, 0], x, pre, comb).dtype == torch.bfloat16
    assert reference.mix(x, torch.randn(3, STREAMS * 5), EPS).dtype == torch.float32


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("backward", [True, False])
def test_the_graph_is_freed_without_the_garbage_collector(impl: str, backward: bool) -> None:
    def run(mark: Callable[[Tensor], Tensor]) -> None:
        x, *weights = (x.requires_grad_() for x in random_inputs())
        parts = enter(mark(x), *weights, impl)
        if backward:
            torch.cat([part.flatten() for part in parts]).square().sum().backward()
            assert x.grad is not None

    assert graph_is_freed(run)


def test_an_unknown_implementation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="enter: impl must be one of native, torch, reference, got 'nope'"):
        enter(*random_inputs(), "nope")
