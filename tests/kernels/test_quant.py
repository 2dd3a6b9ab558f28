"""Number formats: recorded casts bit for bit, and small cases worked out by hand."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsv4.kernels import native, quant

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu


@pytest.fixture(scope="module")
def ops(reference_data: Path) -> dict[str, Tensor]:
    return load_file(reference_data / "reference" / "ops.safetensors")


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.uint8)


def _scales(*exponents: int) -> Tensor:
    return torch.tensor([e + 127 for e in exponents], dtype=torch.uint8).view(E8M0)


def test_fp8_activation_cast_is_the_recorded_one(ops: dict[str, Tensor]) -> None:
    q, scale = quant.quantize_fp8(ops["act.x"])
    assert torch.equal(_bits(q), ops["act.fp8_128_q"])
    assert torch.equal(_bits(scale), ops["act.fp8_128_s_e8m0"])
    q, scale = quant.quantize_fp8(ops["act.x"], scale_format="float32")
    assert torch.equal(_bits(q), ops["act.fp8_128_fp32scale_q"])
    assert torch.equal(scale, ops["act.fp8_128_fp32scale_s"])


def test_simulations_are_the_recorded_ones(ops: dict[str, Tensor]) -> None:
    assert torch.equal(quant.simulate_fp8(ops["act.x"], 64), ops["act.fp8_64_inplace"])
    assert torch.equal(quant.simulate_fp4(ops["act.x"]), ops["act.fp4_32_inplace"])


def test_fp4_activation_cast_is_the_recorded_one(ops: dict[str, Tensor]) -> None:
    packed, scale = quant.quantize_fp4(ops["act.x"])
    assert torch.equal(_bits(packed), ops["act.fp4_32_q_packed_low_first"])
    assert torch.equal(_bits(scale), ops["act.fp4_32_s_e8m0"])


def test_hadamard_is_the_recorded_one(ops: dict[str, Tensor]) -> None:
    assert torch.equal(quant.hadamard(ops["had.x"]), ops["had.y"])


def test_hadamard_is_symmetric_and_its_own_inverse() -> None:
    x = torch.randn(5, 16, dtype=torch.float32)
    torch.testing.assert_close(quant.hadamard(quant.hadamard(x)), x)
    matrix = quant.hadamard(torch.eye(4)) * 2
    assert matrix.tolist() == [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    assert quant.hadamard(torch.ones(1, 1)).item() == 1
    for columns in (0, 3, 96):
        with pytest.raises(ValueError, match="power of two"):
            quant.hadamard(torch.ones(2, columns))


def test_fp4_ties_go_to_the_even_code_and_keep_their_sign() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    x = torch.cat([ties, -ties, ties.nextafter(torch.tensor(9.0)), ties.nextafter(torch.tensor(0.0))])
    values = quant.simulate_fp4(x)
    even = [0, 1, 1, 2, 2, 4, 4]
    assert values[:8].tolist() == [*even, 6]
    assert values[8:16].tolist() == [-v for v in [*even, 6]]
    # just above 6 would need a larger scale for the whole block, so these live in blocks of their own
    up = quant.simulate_fp4(torch.cat([ties[:7].nextafter(torch.tensor(9.0)), torch.tensor([6.0])]), block=8)
    assert up[:7].tolist() == [0.5, 1, 1.5, 2, 3, 4, 6]
    down = quant.simulate_fp4(torch.cat([ties[:7].nextafter(torch.tensor(0.0)), torch.tensor([6.0])]), block=8)
    assert down[:7].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4]


def test_packing_puts_the_even_column_into_the_low_nibble() -> None:
    codes = torch.arange(16, dtype=torch.uint8).reshape(2, 8)
    packed = quant.pack_fp4(codes)
    assert _bits(packed)[0].tolist() == [0x10, 0x32, 0x54, 0x76]
    assert torch.equal(quant.unpack_fp4(packed), codes)
    assert quant.fp4_to_float(codes)[1].tolist() == [-0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (256, 1), (2, 3, 5)])
def test_the_table_of_bytes_is_the_two_steps(shape: tuple[int, ...]) -> None:
    packed = torch.arange(-128, 128).to(torch.int8).repeat(3)[: torch.Size(shape).numel()].reshape(shape)
    expected = quant.fp4_to_float(quant.unpack_fp4(packed))
    assert torch.equal(quant.packed_fp4_to_float(packed), expected)


def test_fp4_rounds_to_the_nearest_value() -> None:
    x = torch.linspace(0, 6, 32 * 4001).reshape(-1, 32)
    x[:, -1] = 6.0  # every block the same scale, 1
    values = torch.tensor(quant.FP4_VALUES)
    # the nearest value; of two equally near ones that with the even code, which comes first in this order
    even_first = values[[0, 2, 4, 6, 1, 3, 5, 7]]
    nearest = even_first[(x.unsqueeze(-1) - even_first).abs().argmin(-1)]
    assert torch.equal(quant.simulate_fp4(x), nearest)


def test_e8m0_covers_all_bytes() -> None:
    scale = torch.arange(256, dtype=torch.uint8).view(E8M0)
    values = quant.e8m0_to_float(scale)
    assert values[:255].tolist() == [2.0 ** (b - 127) for b in range(255)]
    assert values[255].isnan()
    assert torch.equal(_bits(quant.float_to_e8m0(values[:255])), _bits(scale[:255]))


@pytest.mark.parametrize("value", [0.0, 3.0, -1.0, float("nan"), float("inf"), 2.0**-130])
def test_only_powers_of_two_become_e8m0(value: float) -> None:
    with pytest.raises(ValueError, match="powers of two"):
        quant.float_to_e8m0(torch.tensor([1.0, value]))


@pytest.mark.parametrize("shape", [(0, 128), (1, 1), (3, 127), (2, 129), (2, 3, 300)])
def test_fp8_cast_takes_any_shape_and_a_short_last_block(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    q, scale = quant.quantize_fp8(x)
    assert q.shape == x.shape
    assert scale.shape == (*shape[:-1], -(-shape[-1] // 128))
    padded, padded_scale = quant.quantize_fp8(torch.nn.functional.pad(x, (0, -shape[-1] % 128)))
    assert torch.equal(_bits(q), _bits(padded)[..., : shape[-1]])
    assert torch.equal(_bits(scale), _bits(padded_scale))
    assert quant.simulate_fp8(x, 64).shape == x.shape


def test_fp8_scale_is_the_least_power_of_two_that_fits() -> None:
    for amax, exponent in ((448.0, 0), (448.5, 1), (224.0, -1), (1.0, -8), (0.0, -22), (1e-4, -22)):
        _, scale = quant.quantize_fp8(torch.full((1, 128), amax))
        assert scale.to(torch.float32).item() == 2.0**exponent, amax


def test_not_a_number_shows_in_the_scale() -> None:
    for bad in (float("nan"), float("inf")):
        x = torch.ones(1, 256)
        x[0, 3] = bad
        for scale in (quant.quantize_fp8(x)[1], quant.quantize_fp4(x)[1]):
            assert scale.to(torch.float32)[0, 0].isnan()
            assert not scale.to(torch.float32)[0, -1].isnan()


def test_fp4_refuses_what_it_cannot_block() -> None:
    with pytest.raises(ValueError, match="block"):
        quant.quantize_fp4(torch.ones(1, 48))
    with pytest.raises(ValueError, match="block"):
        quant.simulate_fp4(torch.ones(1, 9), block=3)
    with pytest.raises(ValueError, match="scale_format"):
        quant.quantize_fp8(torch.ones(1, 128), scale_format="e5m2")  # type: ignore[arg-type]


@pytest.mark.parametrize(("N", "K"), [(1, 1), (127, 130), (128, 128), (129, 256), (300, 257), (0, 128)])
@pytest.mark.parametrize("scale_format", ["ue8m0", "float32"])
def test_fp8_weight_survives_a_second_round(N: int, K: int, scale_format: quant.ScaleFormat) -> None:
    w_NK = torch.randn(N, K) * torch.logspace(-12, 3, max(K, 1))[:K]
    q, scale = quant.quantize_fp8_weight(w_NK, scale_format)
    assert scale.shape == (-(-N // 128), -(-K // 128))
    assert scale.dtype == (E8M0 if scale_format == "ue8m0" else torch.float32)
    once = quant.dequantize_fp8_weight(q, scale)
    again = quant.dequantize_fp8_weight(*quant.quantize_fp8_weight(once, scale_format))
    assert torch.equal(once, again)
    assert torch.equal(quant.dequantize_fp8_weight(q, scale, torch.bfloat16).to(torch.float32), once)
    tile_max = max(float(w_NK.abs().max()), 1e-30) if N else 1.0
    assert not N or float((once - w_NK).abs().max()) <= tile_max * 2**-4


def test_fp8_weight_uses_the_tile_of_each_value() -> None:
    q = torch.ones(130, 129).to(E4M3)
    scale = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    w_NK = quant.dequantize_fp8_weight(q, scale)
    assert [w_NK[0, 0], w_NK[127, 128], w_NK[128, 127], w_NK[129, 128]] == [1, 2, 4, 8]
    assert torch.equal(quant.dequantize_fp8_weight(q, scale.to(E8M0)), w_NK)
    with pytest.raises(ValueError, match="needs a scale of shape"):
        quant.dequantize_fp8_weight(q, scale[:1])


def test_zero_and_tiny_weights_keep_their_values() -> None:
    q, scale = quant.quantize_fp8_weight(torch.zeros(128, 128))
    assert scale.to(torch.float32).item() == 1
    assert not quant.dequantize_fp8_weight(q, scale).any()
    tiny = torch.full((128, 128), 2.0**-100)
    assert torch.equal(quant.dequantize_fp8_weight(*quant.quantize_fp8_weight(tiny)), tiny)
    assert torch.equal(quant.dequantize_fp4_weight(*quant.quantize_fp4_weight(tiny)), tiny)


@pytest.mark.parametrize("cast", [quant.quantize_fp8_weight, quant.quantize_fp4_weight])
def test_weights_with_nan_are_refused(cast) -> None:
    w_NK = torch.ones(200, 64)
    w_NK[150, 3] = float("nan")
    with pytest.raises(ValueError, match=r"rows 128\.\.199 hold NaN"):
        cast(w_NK)


@pytest.mark.parametrize(("N", "K"), [(1, 32), (130, 96), (257, 160)])
def test_fp4_weight_survives_a_second_round(N: int, K: int) -> None:
    w_NK = torch.randn(N, K)
    once = quant.dequantize_fp4_weight(*quant.quantize_fp4_weight(w_NK))
    assert torch.equal(quant.dequantize_fp4_weight(*quant.quantize_fp4_weight(once)), once)
    assert torch.equal(once, quant.simulate_fp4(w_NK))
    packed, scale = quant.quantize_fp4_weight(w_NK)
    assert torch.equal(quant.dequantize_fp4_weight(packed, scale, torch.bfloat16).to(torch.float32), once)
    with pytest.raises(ValueError, match="needs a scale of shape"):
        quant.dequantize_fp4_weight(packed, scale[:, 1:])


@pytest.mark.parametrize(("N", "K"), [(128, 128), (1, 32), (200, 160), (256, 384)])
def test_fp4_to_fp8_is_lossless_up_to_a_ratio_of_2_to_14(N: int, K: int) -> None:
    packed = torch.randint(-128, 128, (N, K // 2), dtype=torch.int8)
    exponents = torch.randint(-14, 1, (N, K // 32)) - 3
    exponents[0, 0], exponents[-1, -1] = -3, -17
    scale = (exponents + 127).to(torch.uint8).view(E8M0)
    w8_NK, scale8 = quant.fp4_to_fp8_weight(packed, scale)
    assert scale8.shape == (-(-N // 128), -(-K // 128))
    assert torch.equal(quant.dequantize_fp8_weight(w8_NK, scale8), quant.dequantize_fp4_weight(packed, scale))


def test_fp4_to_fp8_says_where_it_would_lose() -> None:
    packed = torch.full((256, 128), 0x11, dtype=torch.int8)  # 0.5 everywhere
    scale = _scales(*[0] * 256 * 8).reshape(256, 8)
    scale[200, 5] = 2.0**-15
    with pytest.raises(ValueError, match=r"tile \(1, 1\): scale ratio above 2\^14"):
        quant.fp4_to_fp8_weight(packed, scale)
    packed[200, 80:96] = 0  # a block of zeros has no value to lose
    w8_NK, scale8 = quant.fp4_to_fp8_weight(packed, scale)
    assert torch.equal(quant.dequantize_fp8_weight(w8_NK, scale8), quant.dequantize_fp4_weight(packed, scale))
    with pytest.raises(ValueError, match="below 2"):
        quant.fp4_to_fp8_weight(packed[:, :16], _scales(*[-125] * 256).reshape(256, 1))


NATIVE = pytest.mark.skipif(not native.available(), reason=native.why_not())


def awkward_rows() -> list[Tensor]:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] * 8)
    bad = torch.ones(3, 256)
    bad[1, 200], bad[2, 3] = float("nan"), float("-inf")
    return [
        torch.randn(7, 320) * torch.logspace(-30, 30, 320),
        torch.randn(5, 64) * 1e-42,
        torch.randn(4, 128) * 1e38,
        torch.cat([torch.zeros(1, 96), -torch.zeros(1, 96)]),
        torch.stack([ties, -ties, ties.nextafter(torch.tensor(0.0))]),
        torch.randn(2, 3, 128).bfloat16(),
        torch.empty(0, 64),
        torch.randn(64, 9).T[:, :32],
        bad,
    ]


def same_bits(one: Tensor, other: Tensor) -> bool:
    same = one.float().view(torch.int32) == other.float().view(torch.int32)
    return one.dtype == other.dtype and bool((same | (one.isnan() & other.isnan())).all())


@NATIVE
@pytest.mark.parametrize("block", [64, 128])
def test_the_native_fp8_round_trip_has_the_bits_of_the_definition(block: int) -> None:
    for x in [*awkward_rows(), torch.randn(3, 129), torch.randn(5, 1)]:
        assert same_bits(quant.simulate_fp8(x, block, impl="native"), quant.simulate_fp8(x, block, impl="reference"))


@NATIVE
@pytest.mark.parametrize("block", [2, 32])
def test_the_native_fp4_round_trip_has_the_bits_of_the_definition(block: int) -> None:
    for x in awkward_rows():
        assert same_bits(quant.simulate_fp4(x, block, impl="native"), quant.simulate_fp4(x, block, impl="reference"))
    with pytest.raises(ValueError, match="block"):
        quant.simulate_fp4(torch.ones(1, 9), block=3, impl="native")


@NATIVE
@pytest.mark.parametrize("simulate", [quant.simulate_fp8_weight, quant.simulate_fp4_weight])
@pytest.mark.parametrize("size", [1e-40, 1.0, 1e30])
def test_native_weights_have_the_bits_of_the_stored_ones(simulate, size: float) -> None:
    for N, K in [(1, 32), (127, 160), (300, 256), (0, 128)]:
        w_NK = torch.randn(N, K) * torch.logspace(-12, 3, K) * size
        assert same_bits(simulate(w_NK, impl="native"), simulate(w_NK, impl="reference"))
    w_NK = torch.ones(200, 64)
    w_NK[150, 3] = float("inf")
    with pytest.raises(ValueError, match=r"rows 128\.\.199 hold NaN"):
        simulate(w_NK, impl="native")


@NATIVE
def test_native_fp8_tiles_may_be_short() -> None:
    w_NK = torch.randn(257, 130)
    assert same_bits(quant.simulate_fp8_weight(w_NK, impl="native"), quant.simulate_fp8_weight(w_NK, impl="reference"))


def test_a_block_without_columns_is_refused() -> None:
    for impl in (None, "reference"):
        with pytest.raises(ValueError, match="block must be at least 1, got 0"):
            quant.simulate_fp8(torch.ones(2, 64), 0, impl=impl)
