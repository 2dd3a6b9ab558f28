"""Units of bfloat16 products that a machine may lack, in plain C++: the kernels built on them, bit for bit beside the
units' arithmetic in numpy, and beside the unit itself where the machine has it."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from dsv4.kernels import native, quant
from dsv4.kernels.matmul import linear
from dsv4.kernels.native.build import BuildError, compiler
from tests.kernels.product_library import Product, product_library
from tests.kernels.stored_weights import KINDS, columns, stored
from tests.kernels.unit_arithmetic import Floats, by_dot_products, by_tiles

pytestmark = pytest.mark.slow
UNITS = {"dots": ("-DDSV4_PLAIN_UNITS",), "tiles": ("-DDSV4_PLAIN_UNITS", "-DDSV4_PLAIN_TILES")}
DEFINED = {"dots": by_dot_products, "tiles": by_tiles}
RELEASED = ["fp8", "fp4"]
# around the borders of tiles (16), pairs of tiles (32), panels (64), FP8 blocks (128) and depths (1,024 columns)
SHAPES = [
    *[(T, 33, 160) for T in (1, 2, 8, 9, 15, 16, 17, 31, 32, 33, 97)],
    *[(3, N, 96) for N in (1, 15, 16, 17, 31, 32, 47, 48, 63, 64, 65, 127, 129, 145)],
    *[(17, 18, K) for K in (32, 64, 128, 992, 1024, 1056, 2080)],
]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=UNITS)
def unit(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def product(unit: str, tmp_path_factory: pytest.TempPathFactory) -> Product:
    try:
        compiler()
    except BuildError as error:
        pytest.skip(str(error))
    return product_library(tmp_path_factory.mktemp(unit), *UNITS[unit])


def drawn(rows: int, K: int, block: int, least: int = -14, most: int = 14) -> Tensor:
    """Random rows whose blocks of columns differ in size by powers of two, so that sums round."""
    sizes = torch.exp2(torch.randint(least, most + 1, (rows, -(-K // block))))
    return torch.randn(rows, K) * sizes.repeat_interleave(block, dim=1)[:, :K]


def defined(unit: str, x_TK: Tensor, weight: Tensor, scale: Tensor) -> Floats:
    q, scale_TB = quant.quantize_fp8(x_TK.float())
    values_TK = q.float() * scale_TB.float().repeat_interleave(128, dim=-1)[:, : x_TK.shape[1]]
    fp4 = weight.dtype == torch.int8
    dequantize = quant.dequantize_fp4_weight if fp4 else quant.dequantize_fp8_weight
    return DEFINED[unit](values_TK.numpy(), dequantize(weight, scale).float().numpy(), fp4)


def assert_same_bits(got: Tensor, wanted: Floats) -> None:
    numbers = got.numpy()
    assert np.array_equal(np.isnan(numbers), np.isnan(wanted))
    same = (numbers.view(np.int32) == wanted.view(np.int32)) | np.isnan(wanted)
    assert same.all(), f"{(~same).sum()} of {same.size} differ, the first at {np.argwhere(~same)[0]}"


@pytest.mark.parametrize("kind", RELEASED)
def test_products_are_what_the_unit_computes(unit: str, product: Product, kind: str) -> None:
    shapes = SHAPES if kind == "fp4" else [*SHAPES, *[(5, 20, K) for K in (1, 31, 33, 63, 65, 129, 1025)]]
    for T, N, K in shapes:
        x_TK, (weight, scale) = drawn(T, K, 128), stored(kind, drawn(N, K, 32))
        assert scale is not None
        wanted = defined(unit, x_TK, weight, scale)
        assert_same_bits(product(x_TK, weight, scale, True), wanted)
        low = product(x_TK.bfloat16(), weight, scale, True)
        assert torch.equal(low, torch.from_numpy(defined(unit, x_TK.bfloat16(), weight, scale)).bfloat16())


@pytest.mark.parametrize("kind", RELEASED)
def test_numbers_of_every_size(unit: str, product: Product, kind: str) -> None:
    for weights in (-120, -60, 0, 60, 100):  # products from far below 2^-126 up
        x_TK = drawn(19, 384, 128, -100, 50)
        weight, scale = stored(kind, torch.randn(35, 384) * 2.0**weights)
        assert scale is not None
        assert_same_bits(product(x_TK, weight, scale, True), defined(unit, x_TK, weight, scale))


@pytest.mark.parametrize("kind", RELEASED)
def test_every_scale(unit: str, product: Product, kind: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0  # in FP8 NaN
    codes = codes.repeat(2, 1)[:, torch.randperm(256)]
    weight = codes.view(torch.int8) if kind == "fp4" else codes.view(torch.float8_e4m3fn)
    x_TK = torch.randn(3, 512 if kind == "fp4" else 256)
    for byte in range(1, 255):  # in 2^-127 the format's numbers and the unit's differ
        scale = torch.full((2, 16) if kind == "fp4" else (1, 2), byte, dtype=torch.uint8).view(torch.float8_e8m0fnu)
        assert_same_bits(product(x_TK, weight, scale, True), defined(unit, x_TK, weight, scale))
    scale.view(torch.uint8).fill_(255)
    assert product(x_TK, weight, scale, True).isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(product: Product, kind: str) -> None:
    x_TK = torch.randn(131, columns(kind, 1060))
    x_TK[7, 3], x_TK[50, 0] = float("nan"), float("inf")
    weight, scale = stored(kind, torch.randn(131, x_TK.shape[1]))
    together = product(x_TK, weight, scale, True)
    for sizes in ([1] * 131, [2, 3, 4, 5, 6, 7, 8, 16, 17, 31, 32], [98, 33]):
        apart = torch.cat([product(x.contiguous(), weight, scale, True) for x in x_TK.split(sizes)])
        assert torch.equal(apart.nan_to_num(1.5), together.nan_to_num(1.5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantize", [True, False])
def test_the_machines_own_unit_computes_the_same(unit: str, product: Product, kind: str, quantize: bool) -> None:
    own = {"dots": "avx512bf16", "tiles": "amx"}[unit]
    if not native.available() or native.isa() != own:
        pytest.skip(f"{own} is not what runs here: {native.describe()}")
    for T, N, K in SHAPES:
        x_TK = drawn(T, columns(kind, K), 128, -90, 20)
        weight, scale = stored(kind, drawn(N, x_TK.shape[1], 32, -60, -30))
        wanted = linear(x_TK, weight, scale, quantize_activations=quantize, impl="native")
        assert_same_bits(product(x_TK, weight, scale, quantize), wanted.numpy())
