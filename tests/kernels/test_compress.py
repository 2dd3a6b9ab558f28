"""Gated pooling against loops over blocks and channels (report eqs 9-12 with overlap, 20-23 without)."""

import math

import pytest
import torch
from torch import Tensor

from dsv4.kernels import compress, native

NATIVE = pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="no native kernels here"))
both = pytest.mark.parametrize("impl", [NATIVE, "reference"])


def pool(kv: Tensor, score: Tensor, own: Tensor, previous: Tensor | None, impl: str = "reference") -> Tensor:
    with torch.set_grad_enabled(torch.is_grad_enabled() and impl != "native"):
        return compress.pool(kv, score, own, previous, impl=impl)


def softmax_pool(score: list[float], value: list[float]) -> float:
    weight = [math.exp(z) for z in score]
    return sum(w * v for w, v in zip(weight, value, strict=True)) / sum(weight)


def brute_hca(kv: Tensor, score: Tensor, m: int) -> Tensor:
    """Eqs 22-23: entry i from rows mi .. m(i+1)-1, one softmax per channel."""
    blocks = [range(m * i, m * (i + 1)) for i in range(len(kv) // m)]
    return torch.tensor(
        [
            [
                softmax_pool([float(score[j, c]) for j in rows], [float(kv[j, c]) for j in rows])
                for c in range(kv.shape[1])
            ]
            for rows in blocks
        ]
    )


def brute_csa(kv: Tensor, score: Tensor, m: int) -> Tensor:
    """Eqs 11-12: own block from the second half of the columns, the block before it from the first half."""
    dim = kv.shape[1] // 2
    out = torch.empty(len(kv) // m, dim)
    for i in range(len(out)):
        own, before = range(m * i, m * (i + 1)), range(m * (i - 1), m * i) if i else range(0)
        for c in range(dim):
            places = [(j, dim + c) for j in own] + [(j, c) for j in before]
            out[i, c] = softmax_pool([float(score[p]) for p in places], [float(kv[p]) for p in places])
    return out


def rows_of(tokens: int, m: int) -> tuple[Tensor, Tensor]:
    own = torch.arange(tokens // m * m).view(-1, m)
    return own, torch.where(own >= m, own - m, -1)


@both
@pytest.mark.parametrize("tokens", [4, 7, 8, 30])
def test_csa_equals_the_loop_and_the_first_block_has_no_previous(tokens: int, impl: str) -> None:
    kv, score = torch.randn(tokens, 6), torch.randn(tokens, 6) * 2
    torch.testing.assert_close(pool(kv, score, *rows_of(tokens, 4), impl), brute_csa(kv, score, 4), atol=1e-6, rtol=0)


@both
@pytest.mark.parametrize(("tokens", "m"), [(16, 16), (130, 128), (49, 16)])
def test_hca_equals_the_loop(tokens: int, m: int, impl: str) -> None:
    kv, score = torch.randn(tokens, 3), torch.randn(tokens, 3) * 2
    own, _ = rows_of(tokens, m)
    torch.testing.assert_close(pool(kv, score, own, None, impl), brute_hca(kv, score, m), atol=1e-6, rtol=0)


@both
def test_rows_may_lie_anywhere(impl: str) -> None:
    kv, score, order = torch.randn(24, 6), torch.randn(24, 6), torch.randperm(24)
    own, before = rows_of(24, 4)
    place = order.argsort()
    moved = torch.where(before < 0, -1, place[before.clamp(min=0)])
    expected = pool(kv, score, own, before, impl)
    torch.testing.assert_close(pool(kv[order], score[order], place[own], moved, impl), expected, atol=1e-6, rtol=0)


@both
def test_what_is_absent_may_hold_nan(impl: str) -> None:
    kv, score = torch.randn(9, 6), torch.randn(9, 6)
    own, before = rows_of(8, 4)
    expected = pool(kv, score, own, before, impl)
    kv[8], score[8] = float("nan"), float("nan")
    torch.testing.assert_close(pool(kv, score, own, before, impl), expected, atol=0, rtol=0)
    # row 0 stands in for the absent block of entry 0; its first half must not count either
    poisoned = torch.cat([torch.full((1, 6), float("nan")), kv[:8]])
    scores = torch.cat([torch.full((1, 6), float("nan")), score[:8]])
    later = torch.where(before < 0, -1, before + 1)
    torch.testing.assert_close(pool(poisoned, scores, own + 1, later, impl), expected, atol=0, rtol=0)


@both
@pytest.mark.parametrize("overlap", [False, True])
def test_no_finished_block_is_an_empty_result(overlap: bool, impl: str) -> None:
    rows = torch.empty(0, 4, dtype=torch.int64)
    out = pool(torch.randn(3, 6), torch.randn(3, 6), rows, rows if overlap else None, impl)
    assert out.shape == (0, 3 if overlap else 6)


@pytest.mark.parametrize("overlap", [False, True])
def test_gradients(overlap: bool) -> None:
    own, before = rows_of(14, 4)
    kv, score = (torch.randn(14, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: pool(a, b, own, before if overlap else None), [kv, score])


def test_an_unknown_implementation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"compress\.pool: impl must be one of .*reference, got 'nope'"):
        compress.pool(torch.randn(4, 2), torch.randn(4, 2), torch.arange(4)[None], None, impl="nope")


def some_blocks(blocks: int, m: int, dim: int, overlap: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """kv and score as halves of one tensor; values of all magnitudes, the last row and what is absent NaN."""
    both_halves = torch.randn(blocks * m + 1, 2 * dim * (2 if overlap else 1)) * 10.0 ** torch.randint(-6, 2, (1,))
    both_halves[:: max(1, m // 3)] *= 1e-39
    both_halves[-1] = float("nan")
    kv, score = both_halves.chunk(2, dim=1)
    own, before = rows_of(blocks * m, m)
    return kv, score, own, before if overlap else None


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 127, 128, 129])
def test_native_equals_the_reference_and_no_block_depends_on_others(dim: int, overlap: bool) -> None:
    kv, score, own, before = some_blocks(67, 4 if overlap else 16, dim, overlap)
    together = pool(kv, score, own, before, "native")
    torch.testing.assert_close(together, pool(kv, score, own, before), atol=1e-6, rtol=2e-6)
    for size in (1, 5):
        parts = [
            pool(kv, score, own[i : i + size], None if before is None else before[i : i + size], "native")
            for i in range(0, 67, size)
        ]
        assert torch.equal(torch.cat(parts), together)
    torch.set_num_threads(2)
    two = pool(kv, score, own, before, "native")
    torch.set_num_threads(1)
    assert torch.equal(two, together)


@both
def test_extreme_scores_pick_one_row_and_nan_stays_nan(impl: str) -> None:
    kv, score = torch.randn(8, 5), torch.full((8, 5), -3e38)
    score[2], score[6] = 3e38, float("nan")
    own, _ = rows_of(8, 4)
    out = pool(kv, score, own, None, impl)
    assert torch.equal(out[0], kv[2])
    assert out[1].isnan().all()


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
def test_native_is_refused_with_the_reason() -> None:
    kv = torch.randn(4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"compress.pool: impl 'native' .*: kv is torch.float64, not torch.float32"):
        compress.pool(kv, kv, torch.arange(4)[None], None, impl="native")


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
def test_the_native_exponential_is_two_ulp_at_most() -> None:
    """Two rows, of which the first weighs 1 and gives 0: the result is e^x / (1 + e^x)."""
    x = torch.cat([-torch.rand(20000) * 110, -(10.0 ** (-20 * torch.rand(1000))), torch.tensor([0.0, -float("inf")])])
    score = torch.stack([torch.zeros_like(x), x])
    kv = torch.tensor([[0.0], [1.0]]).expand(-1, len(x)).contiguous()
    out = pool(kv, score, torch.tensor([[0, 1]]), None, "native")[0]
    exact = x.double().exp() / (1 + x.double().exp())
    # one more for the sum and one for the quotient; the least denormal counts as one
    spacing = torch.nextafter(exact.float(), torch.tensor(2.0)).double() - exact.float().double()
    assert ((out.double() - exact).abs() <= 4 * spacing).all()
    assert out[-1] == 0
