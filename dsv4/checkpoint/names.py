"""How a folder stores each parameter: names, dtypes and shapes of its tensors in every layout (spec: checkpoint.md
section 2).

`dsv4.parameters` lists the parameters. `<linear>.weight` may be accompanied by `<linear>.scale`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch

from dsv4.checkpoint.format import CheckpointError, TensorSpec
from dsv4.config import ModelConfig
from dsv4.kernels.quant import FP4_BLOCK, FP8_BLOCK
from dsv4.parameters import Parameter, Storage, parameters

INT4_GROUP = 32  # columns of a row that share a scale in W4A16, as in FP4
Precision = Literal["fp4", "fp8", "bf16", "fp32", "w4a16"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a folder stores its linears and routed experts, and the dtype of FP8 scales."""

    name: str
    linears: Precision
    experts: Precision
    scale: torch.dtype = torch.float8_e8m0fnu


RELEASE = Layout("release", "fp8", "fp4")
"""Of the released models: linears in FP8, routed experts in FP4, scales that are powers of two (E8M0)."""
RELEASE_FP8 = Layout("release_fp8", "fp8", "fp8")
"""As RELEASE, with routed experts in FP8: for engines that cannot compute FP4."""
BASE = Layout("base", "fp8", "fp8", torch.float32)
"""Of the released Base models: all linears in FP8, scales in float32."""
BF16 = Layout("bf16", "bf16", "bf16")
"""All linears in bfloat16."""
FP32 = Layout("fp32", "fp32", "fp32")
"""All linears in float32."""
# FP4 experts among floats: what a GGUF file of MXFP4 experts becomes without rounding
BF16_FP4 = Layout("bf16_fp4", "bf16", "fp4")
FP32_FP4 = Layout("fp32_fp4", "fp32", "fp4")
# for other engines only: 4-bit integers of compressed-tensors, which a load does not read
W4A16 = Layout("w4a16", "bf16", "w4a16")
LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {layout.name: layout for layout in (RELEASE, RELEASE_FP8, BASE, BF16, FP32, BF16_FP4, FP32_FP4)}
)
"""The layouts that are read and written, by name."""


def stored(parameter: Parameter, layout: Layout) -> dict[str, TensorSpec]:
    """The tensors that hold one parameter in a layout: the weight and, when quantised, its scale."""
    name, storage, shape = parameter.name, parameter.storage, parameter.shape
    precision: Precision | None = None
    if storage in (Storage.LINEAR, Storage.EXPERT):
        precision = layout.linears if storage is Storage.LINEAR else layout.experts
    if precision == "fp8" and not _even_tiles(shape):
        precision = "bf16"
    if precision == "fp8":
        N, K = shape
        tiles = (-(-N // FP8_BLOCK), -(-K // FP8_BLOCK))
        return {
            name: TensorSpec(torch.float8_e4m3fn, shape),
            parameter.scale_name: TensorSpec(layout.scale, tiles),
        }
    if precision == "w4a16":
        N, K = shape
        if K % INT4_GROUP:
            raise CheckpointError(f"{name}: W4A16 needs a multiple of {INT4_GROUP} columns, got {K}")
        return {
            packed_name(name, "weight_packed"): TensorSpec(torch.int32, (N, K // 8)),
            packed_name(name, "weight_scale"): TensorSpec(torch.bfloat16, (N, K // INT4_GROUP)),
            packed_name(name, "weight_shape"): TensorSpec(torch.int64, (2,)),
        }
    if precision == "fp4":
        N, K = shape
        if K % FP4_BLOCK:
            raise CheckpointError(f"{name}: FP4 needs a multiple of {FP4_BLOCK} columns, got {K}")
        return {
            name: TensorSpec(torch.int8, (N, K // 2)),
            parameter.scale_name: TensorSpec(torch.float8_e8m0fnu, (N, K // FP4_BLOCK)),
        }
    if storage is Storage.TABLE:
        return {name: TensorSpec(torch.int64, shape)}
    if storage is Storage.FLOAT or layout.linears == "fp32":
        return {name: TensorSpec(torch.float32, shape)}
    return {name: TensorSpec(torch.bfloat16, shape)}


def packed_name(weight_name: str, word: str) -> str:
    """`x.weight` -> `x.weight_packed`."""
    return weight_name.removesuffix("weight") + word


def _even_tiles(shape: tuple[int, ...]) -> bool:
    """Whether all readers of the FP8 layout see the same tiles: widths of one tile or of whole tiles.

    transformers spreads the scales of 192 columns as 96 + 96, the released kernels and ours as 128 + 64.
    """
    return all(width < FP8_BLOCK or width % FP8_BLOCK == 0 for width in shape)


def expected_tensors(config: ModelConfig, layout: Layout) -> dict[str, TensorSpec]:
    """Every stored tensor of a folder in released order, name -> dtype and shape."""
    found: dict[str, TensorSpec] = {}
    for parameter in parameters(config):
        found |= stored(parameter, layout)
    return found


def shard_of(name: str, config: ModelConfig) -> int:
    """The released shard of a tensor, from 1: embedding, layers, head and final norm, then each prediction block or
    draft stage."""
    parts = name.split(".")
    if parts[0] == "embed":
        return 1
    if parts[0] == "layers":
        return int(parts[1]) + 2
    return config.num_hidden_layers + (3 + int(parts[1]) if parts[0] == "mtp" else 2)
