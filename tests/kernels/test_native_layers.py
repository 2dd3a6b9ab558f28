"""Native hyper-connections, norms and rotary embedding: equal to the reference, and to themselves in any company."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dsv4.kernels import hyper_connection as hc
from dsv4.kernels import native
from dsv4.kernels.norm import rms_norm
from dsv4.kernels.rope import apply_rope

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())
DTYPES = [torch.float32, torch.bfloat16]
CONFIG = {"eps": 1e-6, "norm_eps": 1e-6}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


def close(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def parameters(streams: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    mixes = (2 + streams) * streams
    return torch.randn(mixes, streams * dim) / dim**0.5, torch.randn(3), torch.randn(mixes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 127, 128, 129])
@pytest.mark.parametrize(("tokens", "streams"), [(0, 4), (1, 4), (5, 4), (41, 4), (3, 2), (3, 8)])
def test_hyper_connections(dtype: torch.dtype, dim: int, tokens: int, streams: int) -> None:
    x, weights = torch.randn(tokens, streams, dim).to(dtype), parameters(streams, dim)
    y = torch.randn(tokens, dim).to(dtype)
    got, wanted = (hc.enter(x, *weights, iterations=20, impl=impl, **CONFIG) for impl in ("native", "reference"))
    for g, w in zip(got, wanted, strict=True):
        close(g, w, dtype)
    _, post, comb = got
    close(hc.combine(y, x, post, comb, "native"), hc.combine(y, x, post, comb, "reference"), dtype)
    head = [weights[0][:streams], weights[1][:1], weights[2][:streams]]
    close(
        hc.collapse_head(x, *head, impl="native", **CONFIG),
        hc.collapse_head(x, *head, impl="reference", **CONFIG),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [33, 640])
def test_a_token_does_not_depend_on_its_neighbours(dtype: torch.dtype, dim: int) -> None:
    x, weights = torch.randn(90, 4, dim).to(dtype), parameters(4, dim)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        y, post, comb = hc.enter(x, *weights, iterations=20, impl="native", **CONFIG)
        return y, post, comb, hc.combine(y, x, post, comb, "native")

    together = run(x)
    for sizes in ([1] * 90, [3, 4, 5, 31, 47]):
        parts = zip(*(run(part) for part in x.split(sizes)), strict=True)
        for whole, part in zip(together, parts, strict=True):
            assert torch.equal(whole, torch.cat(part))
    try:
        torch.set_num_threads(2)
        assert all(torch.equal(a, b) for a, b in zip(run(x), together, strict=True))
        assert all(torch.equal(a, b[:1]) for a, b in zip(run(x[:1]), together, strict=True))
    finally:
        torch.set_num_threads(1)


def test_extreme_mixes_stay_doubly_stochastic() -> None:
    fn, scale, base = parameters(4, 16)
    for size in (0.0, 1e-20, 1e4, 1e18):
        x = torch.randn(9, 4, 16) * size
        y, post, comb = hc.enter(x, fn * 100, scale, base, iterations=20, impl="native", **CONFIG)
        assert y.isfinite().all()
        assert ((post >= 0) & (post <= 2)).all()
        torch.testing.assert_close(comb.sum(1), torch.ones(9, 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 127, 128, 129])
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm(dtype: torch.dtype, dim: int, weighted: bool) -> None:
    weight = torch.randn(dim) if weighted else None
    for shape in [(0, dim), (1, dim), (7, 3, dim)]:
        x = torch.randn(shape).to(dtype)
        got = rms_norm(x, weight, 1e-6, "native")
        assert got.dtype == dtype
        close(got, rms_norm(x, weight, 1e-6, "reference"), dtype)
        for one, row in zip(x.view(-1, dim), got.view(-1, dim), strict=True):
            assert torch.equal(rms_norm(one, weight, 1e-6, "native"), row)
    poisoned = torch.full((3, dim), float("nan"))
    poisoned[1] = torch.randn(dim)
    assert rms_norm(poisoned, weight, 1e-6, "native")[1].isfinite().all()
    tiny = torch.full((2, dim), 1e-42)
    close(rms_norm(tiny, weight, 1e-6, "native"), rms_norm(tiny, weight, 1e-6, "reference"), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 12), (1, 8), (7, 33), (5, 3, 128), (2, 3, 2, 70)])
@pytest.mark.parametrize("inverse", [True, False])
def test_rope_equals_the_reference_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...], inverse: bool) -> None:
    x, table = torch.randn(shape).to(dtype), torch.randn(2, shape[0], 4)
    wanted = apply_rope(x, table, inverse=inverse, impl="reference")
    assert torch.equal(apply_rope(x, table, inverse=inverse, impl="native"), wanted)
    assert torch.equal(apply_rope(x, table, inverse=inverse), wanted)


def test_where_they_cannot_run() -> None:
    x, table = torch.randn(3, 4, 8), torch.randn(2, 3, 4)
    wide = x.double()
    with pytest.raises(ValueError, match="cannot take"):
        apply_rope(wide, table, impl="native")
    with pytest.raises(ValueError, match="cannot take"):
        rms_norm(wide, None, 1e-6, "native")
    with pytest.raises(ValueError, match="cannot take"):
        hc.combine(wide[:, 0], wide, torch.ones(3, 4).double(), torch.ones(3, 4, 4).double(), "native")
