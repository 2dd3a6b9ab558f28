"""Gated pooling against loops over blocks and channels (report eqs 9-12 with overlap, 20-23 without)."""

import math

import pytest
import torch
from torch import Tensor

from dsv4.kernels.compress import pool


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


@pytest.mark.parametrize("tokens", [4, 7, 8, 30])
def test_csa_equals_the_loop_and_the_first_block_has_no_previous(tokens: int) -> None:
    kv, score = torch.randn(tokens, 6), torch.randn(tokens, 6) * 2
    torch.testing.assert_close(pool(kv, score, *rows_of(tokens, 4)), brute_csa(kv, score, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("tokens", "m"), [(16, 16), (130, 128), (49, 16)])
def test_hca_equals_the_loop(tokens: int, m: int) -> None:
    kv, score = torch.randn(tokens, 3), torch.randn(tokens, 3) * 2
    own, _ = rows_of(tokens, m)
    torch.testing.assert_close(pool(kv, score, own, None), brute_hca(kv, score, m), atol=1e-6, rtol=0)


def test_rows_may_lie_anywhere() -> None:
    kv, score, order = torch.randn(24, 6), torch.randn(24, 6), torch.randperm(24)
    own, before = rows_of(24, 4)
    place = order.argsort()
    moved = torch.where(before < 0, -1, place[before.clamp(min=0)])
    expected = pool(kv, score, own, before)
    torch.testing.assert_close(pool(kv[order], score[order], place[own], moved), expected, atol=1e-6, rtol=0)


def test_what_is_absent_may_hold_nan() -> None:
    kv, score = torch.randn(9, 6), torch.randn(9, 6)
    own, before = rows_of(8, 4)
    expected = pool(kv, score, own, before)
    kv[8], score[8] = float("nan"), float("nan")
    torch.testing.assert_close(pool(kv, score, own, before), expected, atol=0, rtol=0)
    # row 0 stands in for the absent block of entry 0; its first half must not count either
    poisoned = torch.cat([torch.full((1, 6), float("nan")), kv[:8]])
    scores = torch.cat([torch.full((1, 6), float("nan")), score[:8]])
    later = torch.where(before < 0, -1, before + 1)
    torch.testing.assert_close(pool(poisoned, scores, own + 1, later), expected, atol=0, rtol=0)


@pytest.mark.parametrize("overlap", [False, True])
def test_no_finished_block_is_an_empty_result(overlap: bool) -> None:
    rows = torch.empty(0, 4, dtype=torch.int64)
    out = pool(torch.randn(3, 6), torch.randn(3, 6), rows, rows if overlap else None)
    assert out.shape == (0, 3 if overlap else 6)


@pytest.mark.parametrize("overlap", [False, True])
def test_gradients(overlap: bool) -> None:
    own, before = rows_of(14, 4)
    kv, score = (torch.randn(14, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: pool(a, b, own, before if overlap else None), [kv, score])


def test_an_unknown_implementation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"compress\.pool: impl must be one of reference, got 'nope'"):
        pool(torch.randn(4, 2), torch.randn(4, 2), torch.arange(4)[None], None, impl="nope")
