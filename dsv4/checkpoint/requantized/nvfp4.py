"""NVFP4: FP4 codes (e2m1), an e4m3 scale for 16 columns of a row, and one float32 scale for the whole weight.

compressed-tensors   weight_packed, weight_scale, weight_global_scale: value = code * weight_scale / weight_global_scale
ModelOpt             weight, weight_scale, weight_scale_2: value = code * weight_scale * weight_scale_2

Codes lie as in the release: two in a byte, the even column in the low half. input_* scales concern activations.
"""

import torch
from torch import Tensor

from dsv4.checkpoint.requantized.method import Method, Parts, Shape, Specs, expect
from dsv4.kernels.quant import packed_fp4_to_float

BLOCK = 16
_BYTES = (torch.uint8, torch.int8)


def _problem(specs: Specs, shape: Shape, codes: str, scalar: str) -> str | None:
    N, K = shape
    if K % BLOCK:
        return f"NVFP4 needs a multiple of {BLOCK} columns, got {K}"
    return (
        expect(codes, specs[codes], _BYTES, (N, K // 2))
        or expect("weight_scale", specs["weight_scale"], (torch.float8_e4m3fn,), (N, K // BLOCK))
        or expect(scalar, specs[scalar], (torch.float32, torch.bfloat16), (), (1,))
    )


def _compressed_tensors_problem(specs: Specs, shape: Shape) -> str | None:
    return _problem(specs, shape, "weight_packed", "weight_global_scale")


def _modelopt_problem(specs: Specs, shape: Shape) -> str | None:
    return _problem(specs, shape, "weight", "weight_scale_2")


def _compressed_tensors_values(parts: Parts, shape: Shape) -> Tensor:
    total = parts["weight_global_scale"].to(torch.float32).reshape(())
    return _values(parts["weight_packed"], parts["weight_scale"].to(torch.float32) / total)


def _modelopt_values(parts: Parts, shape: Shape) -> Tensor:
    total = parts["weight_scale_2"].to(torch.float32).reshape(())
    return _values(parts["weight"], parts["weight_scale"].to(torch.float32) * total)


def _values(codes_NK: Tensor, scale_NB: Tensor) -> Tensor:
    values_NBK = packed_fp4_to_float(codes_NK.view(torch.int8)).unflatten(-1, (-1, BLOCK))
    return (values_NBK * scale_NB.unsqueeze(-1)).flatten(-2)


COMPRESSED_TENSORS = Method(
    "NVFP4 (compressed-tensors)",
    frozenset({"weight_packed", "weight_scale", "weight_global_scale"}),
    frozenset({"input_global_scale"}),
    _compressed_tensors_problem,
    _compressed_tensors_values,
)
MODELOPT = Method(
    "NVFP4 (ModelOpt)",
    frozenset({"weight", "weight_scale", "weight_scale_2"}),
    frozenset({"input_scale"}),
    _modelopt_problem,
    _modelopt_values,
)
