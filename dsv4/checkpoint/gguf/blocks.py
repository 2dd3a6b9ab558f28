"""Weights of a GGUF file that pack several values into a block, and the blocks that an export writes.

Q8_0     32 columns: a float16 d and 32 int8 q; value = d * q. The type is written as ggml's reference does: d is the
         largest magnitude / 127, values round half away from zero
MXFP4    32 columns: an e8m0 scale and 16 bytes; the low half of byte j is column j, the high half column j + 16. The
         same codes and scales as the release's FP4, which has columns 2j and 2j + 1 there: both ways only move bits
others   (Q2_K to Q6_K, IQ1 to IQ4, Q4_0, ...) multiplied out by the package `gguf` of llama.cpp, extra `gguf`
"""

import sys
from importlib.util import find_spec

import torch
from torch import Tensor

from dsv4.checkpoint.format import TensorSpec
from dsv4.checkpoint.gguf.types import MXFP4, Q8_0, GgmlType
from dsv4.checkpoint.requantized.method import Method, Parts, Shape, Specs, expect
from dsv4.kernels.quant import FP4_BLOCK, dequantize_weight, pack_fp4, unpack_fp4

BLOCKS = "blocks"  # the last word of the only tensor of such a weight
_Q8_MAX = 127
_NO_PACKAGE = "this type is read by the package gguf: pip install 'dsv4[gguf]'"


def q8_0_blocks(w_NK: Tensor) -> Tensor:
    """Float [N, K] -> uint8 [N, K / 32 * 34]. Raises ValueError for NaN, infinity and what float16 scales cannot
    hold."""
    w_NBK = w_NK.to(torch.float32).unflatten(-1, (-1, Q8_0.values))
    d_NB1 = w_NBK.abs().amax(-1, keepdim=True) / _Q8_MAX
    if not bool(d_NB1.to(torch.float16).isfinite().all()):
        raise ValueError("Q8_0 holds finite values below 2^23, it has others")
    scaled = w_NBK * torch.where(d_NB1 == 0, 0.0, 1 / d_NB1)
    size = scaled.abs()
    # not floor(size + 0.5): that sum is rounded too
    q_NBK = (size.floor() + (2 * size.frac()).floor()).copysign(scaled).to(torch.int8)
    return torch.cat((d_NB1.to(torch.float16).view(torch.uint8), q_NBK.view(torch.uint8)), -1).flatten(-2)


def q8_0_values(blocks: Tensor) -> Tensor:
    """uint8 [N, K / 32 * 34] -> float32 [N, K]."""
    d_NB1, q_NBK = blocks.unflatten(-1, (-1, Q8_0.nbytes)).split((2, Q8_0.values), -1)
    d_NB1 = d_NB1.contiguous().view(torch.float16).to(torch.float32)
    return (d_NB1 * q_NBK.contiguous().view(torch.int8).to(torch.float32)).flatten(-2)


def mxfp4_blocks(packed: Tensor, scale: Tensor) -> Tensor:
    """The release's FP4 (int8 [N, K/2], e8m0 [N, K/32]) -> uint8 [N, K / 32 * 17]; no value and no scale changes."""
    first, second = unpack_fp4(packed).unflatten(-1, (-1, FP4_BLOCK)).split(FP4_BLOCK // 2, -1)
    return torch.cat((scale.view(torch.uint8).unsqueeze(-1), first | second << 4), -1).flatten(-2)


def mxfp4_released(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse: uint8 [N, K / 32 * 17] -> int8 [N, K/2], e8m0 [N, K/32]."""
    scale, halves = blocks.unflatten(-1, (-1, MXFP4.nbytes)).split((1, FP4_BLOCK // 2), -1)
    codes = torch.cat((halves & 15, halves >> 4), -1)
    return pack_fp4(codes).flatten(-2), scale.squeeze(-1).contiguous().view(torch.float8_e8m0fnu)


def method_of(kind: GgmlType) -> Method:
    """How a weight of a type that packs values is read."""

    def problem(specs: Specs, shape: Shape) -> str | None:
        if len(shape) != 2 or shape[1] % kind.values:
            return f"{kind.name} packs {kind.values} columns of a matrix, the model has {list(shape)} here"
        if kind not in (MXFP4, Q8_0) and not _package_installed():
            return _NO_PACKAGE
        return expect(BLOCKS, specs[BLOCKS], (torch.uint8,), blocks_spec(kind, shape).shape)

    def values(parts: Parts, shape: Shape) -> Tensor:
        blocks = parts[BLOCKS]
        if kind is MXFP4:
            return dequantize_weight(*mxfp4_released(blocks))
        return q8_0_values(blocks) if kind is Q8_0 else _by_package(kind, blocks)

    def released(parts: Parts) -> tuple[Tensor, Tensor]:
        return mxfp4_released(parts[BLOCKS])

    words = frozenset({BLOCKS})
    return Method(f"GGUF {kind.name}", words, frozenset(), problem, values, released if kind is MXFP4 else None)


def _package_installed() -> bool:
    return "gguf" in sys.modules or find_spec("gguf") is not None


def _by_package(kind: GgmlType, blocks: Tensor) -> Tensor:
    """Float32 values by the package `gguf`. Raises ValueError where it, or this type in it, is missing."""
    try:
        from gguf import GGMLQuantizationType  # pyrefly: ignore
        from gguf.quants import dequantize  # pyrefly: ignore
    except ImportError:
        raise ValueError(_NO_PACKAGE) from None
    try:
        values = dequantize(blocks.numpy(), GGMLQuantizationType(kind.number))
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"the package gguf does not read this type ({error})") from None
    return torch.from_numpy(values)


def blocks_spec(kind: GgmlType, shape: tuple[int, ...]) -> TensorSpec:
    """The bytes of a packed matrix [N, K]."""
    return TensorSpec(torch.uint8, (*shape[:-1], kind.bytes_of(shape[-1:])))
