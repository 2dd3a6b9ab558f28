"""The linear product in every stored precision, against recorded results and a float64 product."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsv4.kernels import quant
from dsv4.kernels.matmul import linear, reference

E8M0 = torch.float8_e8m0fnu


@pytest.fixture(scope="module")
def ops(reference_data: Path) -> dict[str, Tensor]:
    return load_file(reference_data / "reference" / "ops.safetensors")


def _recorded(ops: dict[str, Tensor], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    if kind == "fp8":
        return ops["gemm.w8"].view(torch.float8_e4m3fn), ops["gemm.w8_s"].view(E8M0), ops["gemm.fp8_out"]
    return ops["gemm.w4"].view(torch.int8), ops["gemm.w4_s"].view(E8M0), ops["gemm.fp4_out"]


def _exact(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product of the quantised operands in float64."""
    q, scale_TB = quant.quantize_fp8(x)
    scale_TK = scale_TB.to(torch.float64).repeat_interleave(128, dim=-1)[:, : x.shape[-1]]
    dequantize = quant.dequantize_fp4_weight if weight.dtype == torch.int8 else quant.dequantize_fp8_weight
    return (q.to(torch.float64) * scale_TK) @ dequantize(weight, scale, torch.float64).T


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
def test_recorded_products_bit_for_bit(ops: dict[str, Tensor], kind: str) -> None:
    # NOTE: the recording rounded its running sum to bfloat16 after every block; the released kernels do not.
    weight, scale, expected = _recorded(ops, kind)
    got = reference.linear(ops["gemm.x"], weight, scale, True, accumulator=torch.bfloat16)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
def test_our_sum_is_the_correctly_rounded_product(ops: dict[str, Tensor], kind: str) -> None:
    weight, scale, expected = _recorded(ops, kind)
    got = linear(ops["gemm.x"], weight, scale, impl="reference")
    exact = _exact(ops["gemm.x"], weight, scale)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, exact.to(torch.bfloat16), rtol=2**-8, atol=1e-5)
    ours, theirs = ((y.to(torch.float64) - exact).abs().mean() for y in (got, expected))
    assert ours < theirs


def _weight(kind: str, N: int, K: int) -> tuple[Tensor, Tensor]:
    w_NK = torch.randn(N, K)
    if kind == "fp4":
        return quant.quantize_fp4_weight(w_NK)
    return quant.quantize_fp8_weight(w_NK, "float32" if kind == "fp8-float32" else "ue8m0")


@pytest.mark.parametrize("kind", ["fp8", "fp8-float32", "fp4"])
@pytest.mark.parametrize("T", [0, 1, 5])
@pytest.mark.parametrize(("N", "K"), [(1, 32), (130, 160), (64, 128), (129, 288)])
def test_ragged_shapes(kind: str, T: int, N: int, K: int) -> None:
    x_TK = torch.randn(T, K)
    weight, scale = _weight(kind, N, K)
    got = linear(x_TK, weight, scale, impl="reference")
    assert got.shape == (T, N)
    torch.testing.assert_close(got, _exact(x_TK, weight, scale).to(torch.float32), rtol=1e-5, atol=1e-4)


def test_fp8_takes_columns_that_no_block_divides() -> None:
    x_TK = torch.randn(3, 131)
    weight, scale = _weight("fp8", 7, 131)
    torch.testing.assert_close(
        linear(x_TK, weight, scale, impl="reference"),
        _exact(x_TK, weight, scale).to(torch.float32),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_activation_cast_the_weight_is_dequantised(kind: str, dtype: torch.dtype) -> None:
    x_TK = torch.randn(4, 96, dtype=dtype)
    weight, scale = _weight(kind, 40, 96)
    dequantize = quant.dequantize_fp4_weight if kind == "fp4" else quant.dequantize_fp8_weight
    expected = torch.nn.functional.linear(x_TK, dequantize(weight, scale, dtype))
    assert torch.equal(linear(x_TK, weight, scale, quantize_activations=False, impl="reference"), expected)


@pytest.mark.parametrize("kind", ["fp8", "fp4"])
def test_leading_dimensions_and_float_weights(kind: str) -> None:
    x = torch.randn(2, 3, 64)
    weight, scale = _weight(kind, 10, 64)
    assert torch.equal(linear(x, weight, scale), linear(x.reshape(6, 64), weight, scale).reshape(2, 3, 10))
    w_NK = torch.randn(10, 64)
    assert torch.equal(linear(x, w_NK), torch.nn.functional.linear(x, w_NK))


def test_operands_that_do_not_fit_are_refused() -> None:
    x_TK = torch.randn(2, 64)
    fp8, scale8 = _weight("fp8", 4, 64)
    fp4, scale4 = _weight("fp4", 4, 64)
    for weight, scale, text in [
        (fp8, None, "needs scale"),
        (fp8, scale4, "needs scale"),
        (fp4, None, "needs scale"),
        (fp4, scale4[:, :1], "needs scale"),
        (torch.randn(4, 64), scale8, "needs scale"),
        (fp8[:, :32], scale8, "64 columns"),
        (fp4[:, :16], scale4, "64 columns"),
        (torch.zeros(4, 64, dtype=torch.int64), None, "float8_e4m3fn or packed int8"),
    ]:
        with pytest.raises(ValueError, match=text):
            linear(x_TK, weight, scale)
    with pytest.raises(ValueError, match="multiple of 32"):
        linear(torch.randn(2, 48), fp4[:, :24], scale4[:, :1])
    with pytest.raises(ValueError, match="impl must be one of native, reference"):
        linear(x_TK, fp8, scale8, impl="cuda")
