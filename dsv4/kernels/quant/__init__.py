"""Block-scaled number formats: FP8 e4m3 (activations 1x128 or 1x64, weights 128x128) and FP4 e2m1 (1x32).

Scales are powers of two stored as e8m0 bytes, or float32. Activation casts follow the released kernels bit
for bit; weight casts give back the same values when applied twice. No gradients pass through any of them.

Legend: K input columns, N output rows.
"""

from torch import Tensor

from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.quant import native, reference
from dsv4.kernels.quant.reference import (
    FP4_BLOCK,
    FP4_MAX,
    FP4_VALUES,
    FP8_BLOCK,
    FP8_MAX,
    ScaleFormat,
    dequantize_fp4_weight,
    dequantize_fp8_weight,
    dequantize_weight,
    e8m0_to_float,
    float_to_e8m0,
    fp4_to_float,
    fp4_to_fp8_weight,
    hadamard,
    pack_fp4,
    packed_fp4_to_float,
    powers_of_two,
    quantize_fp4,
    quantize_fp4_weight,
    quantize_fp8,
    quantize_fp8_weight,
    unpack_fp4,
)

__all__ = [
    "FP4_BLOCK",
    "FP4_MAX",
    "FP4_VALUES",
    "FP8_BLOCK",
    "FP8_MAX",
    "ScaleFormat",
    "dequantize_fp4_weight",
    "dequantize_fp8_weight",
    "dequantize_weight",
    "e8m0_to_float",
    "float_to_e8m0",
    "fp4_to_float",
    "fp4_to_fp8_weight",
    "hadamard",
    "pack_fp4",
    "packed_fp4_to_float",
    "powers_of_two",
    "quantize_fp4",
    "quantize_fp4_weight",
    "quantize_fp8",
    "quantize_fp8_weight",
    "simulate_fp4",
    "simulate_fp4_weight",
    "simulate_fp8",
    "simulate_fp8_weight",
    "unpack_fp4",
]


def simulate_fp8(x: Tensor, block: int = 64, *, impl: str | None = None) -> Tensor:
    """x after a round trip through FP8 (power-of-two scales), same shape and dtype: what a KV row keeps. Raises
    ValueError for a block below 1."""
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    return dispatch("simulate_fp8", impl, _SIMULATE_FP8, x, block)


def simulate_fp4(x: Tensor, block: int = FP4_BLOCK, *, impl: str | None = None) -> Tensor:
    """x after a round trip through FP4, same shape and dtype: indexer queries and keys. Raises ValueError for a block
    that is odd or does not divide the last dimension."""
    return dispatch("simulate_fp4", impl, _SIMULATE_FP4, x, block)


def simulate_fp8_weight(w_NK: Tensor, *, impl: str | None = None) -> Tensor:
    """The float32 values that `quantize_fp8_weight` keeps of a weight. Raises ValueError for NaN or infinity."""
    return dispatch("simulate_fp8_weight", impl, _SIMULATE_FP8_WEIGHT, w_NK)


def simulate_fp4_weight(w_NK: Tensor, *, impl: str | None = None) -> Tensor:
    """The float32 values that `quantize_fp4_weight` keeps of a weight. Raises ValueError for NaN, infinity, and a width
    that is not made of whole blocks."""
    return dispatch("simulate_fp4_weight", impl, _SIMULATE_FP4_WEIGHT, w_NK)


def _implementations(name: str) -> tuple[Implementation, ...]:
    # a cast has no gradient, so recording one changes nothing
    fast, definition = getattr(native, name), getattr(reference, name)
    return (
        Implementation("native", fast, native.takes, fast),
        Implementation("reference", definition, differentiable=definition),
    )


_SIMULATE_FP8 = _implementations("simulate_fp8")
_SIMULATE_FP4 = _implementations("simulate_fp4")
_SIMULATE_FP8_WEIGHT = _implementations("simulate_fp8_weight")
_SIMULATE_FP4_WEIGHT = _implementations("simulate_fp4_weight")
