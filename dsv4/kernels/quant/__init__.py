"""Block-scaled number formats: FP8 e4m3 (activations 1x128 or 1x64, weights 128x128) and FP4 e2m1 (1x32).

Scales are powers of two stored as e8m0 bytes, or float32. Activation casts follow the released kernels bit
for bit; weight casts give back the same values when applied twice. No gradients pass through any of them.
"""

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
    simulate_fp4,
    simulate_fp8,
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
    "simulate_fp8",
    "unpack_fp4",
]
