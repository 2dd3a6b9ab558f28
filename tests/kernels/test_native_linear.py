"""The native linear product: right in every stored precision, and the same bits whatever else is in the call."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv4.kernels import native, quant
from dsv4.kernels.matmul import linear
from tests.kernels.stored_weights import KINDS, columns, stored

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())
# release numerics as products of bfloat16, not as float32 (FP8) and integers (FP4)
IN_BF16 = native.available() and native.isa() in ("amx", "avx512bf16")
SIZES = [1, 31, 32, 33, 127, 128, 129]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


def exact(x_TK: Tensor, weight: Tensor, scale: Tensor | None, quantize: bool) -> Tensor:
    """The product of the same operands in float64."""
    if scale is None:
        return x_TK.double() @ weight.double().T
    x_TK = x_TK.double()
    if quantize:
        q, scale_TB = quant.quantize_fp8(x_TK.float())
        q = q.double()
        if weight.dtype == torch.int8 and not IN_BF16:
            q = (q * 64).round() / 64  # FP4 products in integers keep no finer steps
        x_TK = q * scale_TB.double().repeat_interleave(128, dim=-1)[:, : x_TK.shape[-1]]
    dequantize = quant.dequantize_fp4_weight if weight.dtype == torch.int8 else quant.dequantize_fp8_weight
    return x_TK @ dequantize(weight, scale).double().T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("K", SIZES)
@pytest.mark.parametrize("quantize", [True, False])
def test_values(kind: str, K: int, quantize: bool) -> None:
    K = columns(kind, K)
    for T, N in [(1, 33), (2, 1), (3, 31), (4, 7), (5, 128), (33, 129)]:
        x_TK = torch.randn(T, K)
        weight, scale = stored(kind, torch.randn(N, K))
        got = linear(x_TK, weight, scale, quantize_activations=quantize, impl="native")
        wanted = exact(x_TK, weight, scale, quantize).float()
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-5 * K**0.5)
        low = linear(x_TK.bfloat16(), weight, scale, quantize_activations=quantize, impl="native")
        wanted = linear(x_TK.bfloat16().float(), weight, scale, quantize_activations=quantize, impl="native")
        assert torch.equal(low, wanted.bfloat16())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("N", "K"), [(31, 33), (130, 1120), (64, 128)])
def test_a_row_does_not_depend_on_the_others(kind: str, N: int, K: int) -> None:
    K = columns(kind, K)
    x_TK = torch.randn(401, K)
    weight, scale = stored(kind, torch.randn(N, K))
    together = linear(x_TK, weight, scale, impl="native")
    for sizes in [[1] * 401, [2, 3, 4, 5, 6, 7, 8, 9, 13, 44, 96, 97, 107], [200, 201]]:
        assert torch.equal(torch.cat([linear(x, weight, scale, impl="native") for x in x_TK.split(sizes)]), together)
    assert torch.equal(linear(x_TK.flip(0), weight, scale, impl="native").flip(0), together)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantize", [True, False])
def test_a_row_that_is_not_finite_changes_no_other(kind: str, quantize: bool) -> None:
    weight, scale = stored(kind, torch.ones(130, 128))
    x_TK = torch.zeros(9, 128)
    x_TK[:, 0] = torch.tensor([300.0, 7e4, 1e30, 3e38, 1e-39, float("nan"), float("inf"), float("-inf"), 1.0])

    def product(rows: Tensor) -> Tensor:
        return linear(rows, weight, scale, quantize_activations=quantize, impl="native")

    for row_K in x_TK[:5]:
        alone = product(row_K[None])[0]
        assert alone.isfinite().all()
        for other_K in x_TK[5:]:
            for T in (*range(2, 10), 12, 16, 17):  # in registers, in several passes, and through a panel
                rows = torch.cat([row_K[None], other_K.expand(T - 1, -1)])
                assert torch.equal(product(rows)[0], alone), (row_K[0], other_K[0], T)
                assert torch.equal(product(rows.flip(0))[-1], alone), (row_K[0], other_K[0], T)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 4, 7, 130])
def test_threads_change_nothing(kind: str, T: int) -> None:
    x_TK = torch.randn(T, 512)
    weight, scale = stored(kind, torch.randn(257, 512))
    one = linear(x_TK, weight, scale, impl="native")
    try:
        torch.set_num_threads(2)
        assert torch.equal(linear(x_TK, weight, scale, impl="native"), one)
    finally:
        torch.set_num_threads(1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KINDS), st.integers(0, 40), st.integers(1, 60), st.integers(1, 700), st.integers(0, 2**31))
def test_any_shape(kind: str, T: int, N: int, K: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    K = columns(kind, K)
    x_TK = torch.randn(T, K, generator=generator)
    weight, scale = stored(kind, torch.randn(N, K, generator=generator))
    with torch.inference_mode():
        got = linear(x_TK, weight, scale, impl="native")
        torch.testing.assert_close(got, exact(x_TK, weight, scale, True).float(), rtol=1e-5, atol=2e-5 * K**0.5)
        if T:
            at = seed % T
            assert torch.equal(linear(x_TK[at : at + 1], weight, scale, impl="native")[0], got[at])


def test_every_fp8_weight_value_at_every_scale() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 0x7F) != 0x7F]  # without NaN
    weight = codes.view(torch.float8_e4m3fn)[:, None].contiguous()
    scale = torch.arange(256, dtype=torch.uint8)
    for byte in scale:
        s = byte.expand(2, 1).contiguous().view(torch.float8_e8m0fnu)
        wanted = quant.dequantize_fp8_weight(weight, s)
        for T in (1, 6):  # decoded in registers, and through a panel
            got = linear(torch.ones(T, 1), weight, s, quantize_activations=False, impl="native")
            assert torch.equal(got.nan_to_num(1.0), wanted.T.expand(T, -1).nan_to_num(1.0)), int(byte)
        s = s.float()
        if 0 < byte < 255:
            got = linear(torch.ones(1, 1), weight, s * 0.7, quantize_activations=False, impl="native")
            assert torch.equal(got, quant.dequantize_fp8_weight(weight, s * 0.7).T), int(byte)


def test_every_fp4_weight_value_at_every_scale() -> None:
    weight = torch.arange(256, dtype=torch.uint8).view(torch.int8)[:, None].expand(-1, 16).contiguous()
    for byte in range(256):
        s = torch.full((256, 1), byte, dtype=torch.uint8).view(torch.float8_e8m0fnu)
        wanted = quant.dequantize_fp4_weight(weight, s)
        for T in (1, 6):
            for column in (0, 31):
                x = torch.zeros(T, 32)
                x[:, column] = 1.0
                got = linear(x, weight, s, quantize_activations=False, impl="native")
                if byte == 255:
                    assert got.isnan().all()
                elif wanted.isfinite().all():
                    assert torch.equal(got, wanted[:, column].expand(T, -1)), byte


def test_every_fp4_weight_value_at_every_scale_times_fp8() -> None:
    weight = torch.arange(256, dtype=torch.uint8).view(torch.int8)[:, None].expand(-1, 32).contiguous()
    for byte in range(256):
        s = torch.full((256, 2), byte, dtype=torch.uint8).view(torch.float8_e8m0fnu)
        wanted = quant.dequantize_fp4_weight(weight, s)
        if IN_BF16:
            wanted[wanted.abs() < 2.0**-126] = 0.0
        wanted *= 448.0
        x = torch.zeros(64, 64).fill_diagonal_(448.0)
        for T in (1, 3, 64):
            got = linear(x[:T], weight, s, impl="native")
            if byte == 255:
                assert got.isnan().all()
            elif wanted.isfinite().all():
                assert torch.equal(got, wanted.T[:T]), byte


@pytest.mark.skipif(not IN_BF16, reason="float32 products keep smaller weights")
def test_every_fp8_weight_value_at_every_scale_times_fp8() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 0x7F) != 0x7F]  # without NaN
    weight = codes.view(torch.float8_e4m3fn)[:, None].expand(-1, 2).contiguous()
    for byte in range(256):
        s = torch.full((2, 1), byte, dtype=torch.uint8).view(torch.float8_e8m0fnu)
        wanted = quant.dequantize_fp8_weight(weight, s)[:, 0]
        wanted[wanted.abs() < 2.0**-126] = 0.0
        for T in (1, 6, 20):
            got = linear(torch.tensor([1.0, 0.0]).expand(T, -1), weight, s, impl="native")
            finite = wanted.isfinite()
            assert torch.equal(got[:, finite], wanted[finite].expand(T, -1)), byte
            assert not got[:, ~finite].isfinite().any(), byte


def test_fp4_products_keep_e4m3_whole_or_down_to_a_64th_of_its_scale() -> None:
    every = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    x_TK = torch.zeros(2 * len(every), 32)
    x_TK[:, 7] = torch.cat([every, -every])
    x_TK[:, 0] = 448.0  # keeps the scale at one
    w_NK = torch.zeros(1, 32)
    w_NK[0, 7] = 1.0
    got = linear(x_TK, *quant.quantize_fp4_weight(w_NK), impl="native")[:, 0]
    assert torch.equal(got, x_TK[:, 7] if IN_BF16 else (x_TK[:, 7] * 64).round() / 64)
    assert torch.equal(got[: len(every)][every >= 0.125], every[every >= 0.125])  # exact from here up


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-5, 1.0, 300.0, 3e4, 1e30, 3e38])
def test_activations_are_cast_bit_for_bit(size: float) -> None:
    x_TK = torch.randn(9, 200).clamp(-1, 1) * size
    x_TK[0, :130] = torch.linspace(-1, 1, 130) * size
    x_TK[1, 5], x_TK[2, 150], x_TK[3, 0], x_TK[3, 1] = float("nan"), float("inf"), -0.0, 0.0
    q, scale_TB = quant.quantize_fp8(x_TK)
    wanted = q.float() * scale_TB.float().repeat_interleave(128, dim=-1)[:, :200]
    weight, scale = stored("fp8-float32", torch.eye(200))
    got = linear(x_TK, weight, scale, impl="native")
    finite = wanted.isfinite().all(dim=1)
    assert torch.equal(got[finite], wanted[finite] + 0.0)  # a sum of zeros has no sign
    assert got[~finite].isnan().any(dim=1).all()
    assert int((~finite).sum()) == 2


def test_halfway_values_round_to_even() -> None:
    every = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (every[1:] + every[:-1]) / 2
    x_TK = torch.cat([every, middle, middle * (1 + 2**-20), middle * (1 - 2**-20)])[:, None]
    x_TK = torch.cat([x_TK, torch.full_like(x_TK, 448.0)], dim=1)  # keeps the scale at one
    weight = torch.tensor([[1.0, 0.0]]).to(torch.float8_e4m3fn)
    for sign in (1, -1):
        got = linear(x_TK * sign, weight, torch.ones(1, 1), impl="native")[:, 0]
        assert torch.equal(got, (x_TK[:, 0] * sign).to(torch.float8_e4m3fn).float() + 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 5])
def test_memory_around_the_operands_is_not_read_as_values(kind: str, T: int) -> None:
    K = columns(kind, 40)
    weight, scale = stored(kind, torch.randn(5, K))
    room = torch.full((T * K + 64,), float("nan"))
    x_TK = room[: T * K].view(T, K).copy_(torch.randn(T, K))
    raw = weight.view(torch.uint8).flatten()
    big = torch.full((raw.numel() + 256,), 127, dtype=torch.uint8)  # NaN, or the largest value
    view = big[: raw.numel()].copy_(raw).view(weight.dtype).view(weight.shape)
    assert torch.equal(linear(x_TK, view, scale, impl="native"), linear(x_TK.clone(), weight, scale, impl="native"))
    assert linear(x_TK, view, scale, impl="native").isfinite().all()


def test_leading_dimensions_and_empty_inputs() -> None:
    weight, scale = stored("fp8", torch.randn(10, 64))
    x = torch.randn(2, 3, 5, 64)
    assert torch.equal(
        linear(x, weight, scale, impl="native"), linear(x.view(30, 64), weight, scale, impl="native").view(2, 3, 5, 10)
    )
    assert linear(torch.empty(0, 64), weight, scale, impl="native").shape == (0, 10)
    assert linear(torch.empty(3, 0), torch.empty(4, 0), impl="native").tolist() == [[0.0] * 4] * 3
    strided = torch.randn(64, 9).T
    assert torch.equal(linear(strided, weight, scale, impl="native"), linear(strided.contiguous(), weight, scale))


def test_where_it_cannot_run() -> None:
    w_NK = torch.randn(4, 8)
    with torch.inference_mode(False), torch.enable_grad(), pytest.raises(ValueError, match="cannot take"):
        linear(torch.randn(2, 8), torch.randn(4, 8), impl="native")
    for x, w in [(torch.randn(2, 8).double(), w_NK.double()), (torch.randn(2, 8), torch.randn(8, 4).T)]:
        assert linear(x, w).shape == (2, 4)
        with pytest.raises(ValueError, match="cannot take"):
            linear(x, w, impl="native")
