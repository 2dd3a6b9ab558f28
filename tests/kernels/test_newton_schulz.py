"""Newton-Schulz: singular values at 1, the fast forms equal the written one, awkward shapes (eq. 28)."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels import newton_schulz as ns

pytestmark = pytest.mark.usefixtures("without_gradients")

SHAPES = [(4, 4), (16, 48), (48, 16), (1, 7), (7, 1), (4, 256)]
NATIVE = pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="no native kernels here"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("impl", [NATIVE, "torch", "reference"])
def test_singular_values_are_within_one_percent_of_one(shape: tuple[int, int], impl: str, dtype: torch.dtype) -> None:
    x = torch.randn(3, *shape) * torch.tensor([1e-6, 1.0, 1e4])[:, None, None]
    values = torch.linalg.svdvals(ns.orthogonalize(x, impl=impl, dtype=dtype))
    torch.testing.assert_close(values, torch.ones_like(values), atol=0.01, rtol=0)


@pytest.mark.parametrize("shape", [(128, 128), (64, 512), (512, 64)], ids=str)
def test_directions_are_kept(shape: tuple[int, int]) -> None:
    x = torch.randn(1, *shape, dtype=torch.float64)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    out = ns.orthogonalize(x, dtype=torch.float64)
    # the polynomial acts on singular values alone, so what is left in that basis is diagonal
    inner = u.mT @ out @ v.mT
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-9, rtol=0)
    torch.testing.assert_close(inner.diagonal(dim1=1, dim2=2), torch.ones(1, min(shape)).double(), atol=0.01, rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("impl", [NATIVE, "torch"])
def test_implementations_agree(impl: str, shape: tuple[int, int]) -> None:
    x = torch.randn(5, *shape)
    torch.testing.assert_close(ns.orthogonalize(x, impl=impl), ns.orthogonalize(x, impl="reference"), atol=3e-5, rtol=0)


@pytest.mark.parametrize("shape", [(33, 129), (127, 31), (130, 260)], ids=str)
@pytest.mark.parametrize("impl", [NATIVE, "torch"])
def test_small_singular_values_are_moved_as_in_double_precision(impl: str, shape: tuple[int, int]) -> None:
    x = torch.randn(2, *shape)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    x = u @ torch.diag(torch.logspace(0, -4, min(shape))) @ v
    wanted = ns.orthogonalize(x.double(), dtype=torch.float64, impl="reference")
    found = ns.orthogonalize(x, impl=impl).double()
    torch.testing.assert_close(torch.linalg.svdvals(found), torch.linalg.svdvals(wanted), atol=1e-3, rtol=0)
    assert (found - wanted).norm() < 1e-3 * wanted.norm()


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
@pytest.mark.parametrize("shape", [(128, 128), (64, 128), (256, 64), (96, 40), (48, 512)], ids=str)
def test_the_error_is_not_larger_than_that_of_the_written_form(shape: tuple[int, int]) -> None:
    """In float32 against float64, relative in the Frobenius norm: products in another order may not cost precision.
    Random matrices, as gradients are; of condition 1e3 and 1e4 the Gram side of long matrices loses what it squares."""
    u, _, v = torch.linalg.svd(torch.randn(4, *shape), full_matrices=False)
    for spread, allowed in ((0, 2e-6), (1, 2e-5), (2, 2e-4), (3, 1e-3)):
        x = u @ torch.diag(torch.logspace(0, -spread, min(shape))) @ v
        wanted = ns.orthogonalize(x.double(), dtype=torch.float64, impl="reference")
        errors = {
            impl: float((ns.orthogonalize(x, impl=impl).double() - wanted).norm() / wanted.norm())
            for impl in ("native", "reference")
        }
        assert errors["native"] < allowed, (spread, errors)


@pytest.mark.parametrize("shape", [(64, 64), (33, 129), (127, 31), (40, 320), (256, 64)], ids=str)
@pytest.mark.parametrize("impl", [NATIVE, "torch", "reference"])
def test_int16_is_closer_than_bfloat16(impl: str, shape: tuple[int, int]) -> None:
    """Relative in the Frobenius norm, for matrices of condition 1 (random) to 1e4; bfloat16 is that of the report."""
    u, _, v = torch.linalg.svd(torch.randn(4, *shape), full_matrices=False)
    for spread in range(5):
        x = u @ torch.diag(torch.logspace(0, -spread, min(shape))) @ v
        wanted = ns.orthogonalize(x.double(), dtype=torch.float64, impl="reference")

        def error(found: Tensor, wanted: Tensor = wanted) -> float:
            return float((found.double() - wanted).norm() / wanted.norm())

        found = error(ns.orthogonalize(x, dtype=torch.int16, impl=impl))
        assert found < 0.02
        if spread > 1:
            assert found < 0.5 * error(ns.orthogonalize(x, dtype=torch.bfloat16))


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(64, 64), (33, 129), (300, 31)], ids=str)
def test_few_steps_of_int16_are_the_polynomial(shape: tuple[int, int], count: int) -> None:
    """Before rounding grows, so that a wrong term would show; singular values keep their order of size."""
    steps = [(3.0, -2.0, 1.5), (1.5, -1.0, 0.5), (1.2, -0.3, 0.1), (2.0, -1.5, 0.5)][:count]
    x = torch.randn(3, *shape)
    wanted = ns.orthogonalize(x.double(), steps, dtype=torch.float64, impl="reference")
    found = ns.orthogonalize(x, steps, dtype=torch.int16, impl="native").double()
    assert (found - wanted).norm() < 4e-4 * wanted.norm()


@pytest.mark.parametrize("impl", [NATIVE, "torch"])
def test_sums_of_int16_products_do_not_overflow(impl: str) -> None:
    """Columns that point one way reach the largest sum there is: 32767 squared."""
    x = torch.stack([torch.ones(64, 2048), torch.ones(64, 1) * torch.randn(2048), torch.eye(64, 2048)])
    found = ns.orthogonalize(x, dtype=torch.int16, impl=impl).double()
    wanted = ns.orthogonalize(x.double(), dtype=torch.float64, impl="reference")
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


@pytest.mark.parametrize("impl", [NATIVE, "torch", "reference"])
def test_nan_and_infinity_stay_in_their_matrix_of_int16(impl: str) -> None:
    x = torch.randn(3, 40, 70)
    x[0, 3, 4], x[2, 5, 6] = torch.nan, torch.inf
    found = ns.orthogonalize(x, dtype=torch.int16, impl=impl)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()
    assert found[2].isnan().any()


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16], ids=str)
def test_threads_and_the_batch_change_no_bit(dtype: torch.dtype) -> None:
    x = torch.randn(5, 40, 90)
    torch.set_num_threads(1)
    alone = ns.orthogonalize(x, impl="native", dtype=dtype)
    assert torch.equal(ns.orthogonalize(x[3:4], impl="native", dtype=dtype)[0], alone[3])
    torch.set_num_threads(2)
    assert torch.equal(ns.orthogonalize(x, impl="native", dtype=dtype), alone)


def test_matrices_of_a_batch_do_not_meet() -> None:
    x = torch.randn(4, 8, 24)
    together = ns.orthogonalize(x)
    for i in range(4):
        torch.testing.assert_close(ns.orthogonalize(x[i : i + 1])[0], together[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(32, 32), (32, 96), (96, 32)], ids=str)
def test_bfloat16_products_stay_close(shape: tuple[int, int]) -> None:
    x = torch.randn(2, *shape)
    out = ns.orthogonalize(x, dtype=torch.bfloat16)
    assert out.dtype == torch.float32
    values = torch.linalg.svdvals(out)
    torch.testing.assert_close(values, torch.ones_like(values), atol=0.03, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16], ids=str)
@pytest.mark.parametrize("impl", [NATIVE, "torch", "reference"])
def test_zero_stays_zero_and_the_input_is_not_touched(impl: str, dtype: torch.dtype) -> None:
    x = torch.zeros(2, 3, 5)
    x[1] = torch.randn(3, 5)
    kept = x.clone()
    out = ns.orthogonalize(x, impl=impl, dtype=dtype)
    assert torch.equal(out[0], torch.zeros(3, 5))
    assert out[1].isfinite().all()
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("impl", [NATIVE, "torch", "reference"])
def test_a_matrix_fades_out_where_float32_has_no_squares(impl: str, dtype: torch.dtype) -> None:
    if impl == "native" and dtype == torch.bfloat16:
        pytest.skip("the native kernels do not multiply in bfloat16 here")
    x = torch.randn(1, 30, 50)
    largest = [float(ns.orthogonalize(x * 10.0**-e, impl=impl, dtype=dtype).abs().max()) for e in range(14, 45)]
    assert largest[0] == pytest.approx(float(ns.orthogonalize(x, impl=impl, dtype=dtype).abs().max()), rel=0.05)
    assert all(smaller <= 1.1 * larger for larger, smaller in pairwise(largest))  # false for NaN
    assert largest[-1] < 1e-20


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_products_in_int16_of_half_precision_are_those_of_float32(impl: str, kind: torch.dtype) -> None:
    x = torch.randn(2, 48, 64).to(kind)
    x[1] = 0
    found = ns.orthogonalize(x, dtype=torch.int16, impl=impl)
    assert torch.equal(found, ns.orthogonalize(x.float(), dtype=torch.int16, impl=impl).to(kind))


def test_no_matrices_a_wrong_rank_and_a_wrong_dtype() -> None:
    assert ns.orthogonalize(torch.empty(0, 3, 4)).shape == (0, 3, 4)
    with pytest.raises(ValueError, match=r"x must be \[N, n, m\], got \[3, 4\]"):
        ns.orthogonalize(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"dtype must be a float type or int16, got torch\.int8"):
        ns.orthogonalize(torch.zeros(1, 3, 4), dtype=torch.int8)
