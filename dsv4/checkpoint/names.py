"""The one table of tensor names, dtypes and shapes, for every layout of the files (spec: checkpoint.md
section 2).

Parameter names inside our modules equal the released names, so there is nothing to translate: this table only
says what must be there. `<linear>.weight` may be accompanied by `<linear>.scale`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Literal

import torch

from dsv4.checkpoint.format import CheckpointError, TensorSpec
from dsv4.config import LayerSpec, ModelConfig, Routing
from dsv4.kernels.quant import FP4_BLOCK, FP8_BLOCK

Precision = Literal["fp4", "fp8", "bf16", "fp32"]


class Kind(Enum):
    """What a parameter is, hence how it may be stored and in which dtype it computes."""

    LINEAR = "linear"  # FP8 in the quantised layouts, bfloat16 where its tiles would be read in two ways
    EXPERT = "expert"  # a routed expert's linear: FP4 or FP8 (or bfloat16, as above)
    PLAIN = "plain"  # matrices never quantised: embedding, indexer weights
    WIDE = "wide"  # stored in bfloat16, computes in float32: router, compressor, head
    NORM = "norm"  # stored in bfloat16, computes in float32
    FLOAT = "float"  # always float32: hyper-connections, sinks, position biases, router bias
    TABLE = "table"  # int64: hash routing


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the model with its logical (unpacked) shape."""

    name: str
    kind: Kind
    shape: tuple[int, ...]

    @property
    def scale_name(self) -> str:
        """Where the block scales of a quantised weight are stored."""
        return scale_of(self.name)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a folder stores its linears and routed experts, and the dtype of FP8 scales."""

    name: str
    linears: Precision
    experts: Precision
    scale: torch.dtype = torch.float8_e8m0fnu


RELEASE = Layout("release", "fp8", "fp4")
RELEASE_FP8 = Layout("release_fp8", "fp8", "fp8")
BASE = Layout("base", "fp8", "fp8", torch.float32)
BF16 = Layout("bf16", "bf16", "bf16")
FP32 = Layout("fp32", "fp32", "fp32")
LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {layout.name: layout for layout in (RELEASE, RELEASE_FP8, BASE, BF16, FP32)}
)


def scale_of(weight_name: str) -> str:
    """`x.weight` -> `x.scale`."""
    return weight_name.removesuffix("weight") + "scale"


def parameters(config: ModelConfig) -> Iterator[Parameter]:
    """Every parameter of the model in released order; DSpark draft stages are not among them."""
    D, V = config.hidden_size, config.vocab_size
    yield Parameter("embed.weight", Kind.PLAIN, (V, D))
    yield Parameter("head.weight", Kind.WIDE, (V, D))
    yield Parameter("norm.weight", Kind.NORM, (D,))
    yield from _hc_head("", config)
    for layer in config.layers:
        yield from _block(f"layers.{layer.index}.", layer, config)
    for i, layer in enumerate(config.mtp_layers):
        prefix = f"mtp.{i}."
        yield from _block(prefix, layer, config)
        for name in ("e_proj", "h_proj"):
            yield Parameter(f"{prefix}{name}.weight", Kind.LINEAR, (D, D))
        for name in ("enorm", "hnorm", "norm"):
            yield Parameter(f"{prefix}{name}.weight", Kind.NORM, (D,))
        yield from _hc_head(prefix, config)


def stored(parameter: Parameter, layout: Layout) -> dict[str, TensorSpec]:
    """The tensors that hold one parameter in a layout: the weight and, when quantised, its scale."""
    name, kind, shape = parameter.name, parameter.kind, parameter.shape
    precision: Precision | None = None
    if kind in (Kind.LINEAR, Kind.EXPERT):
        precision = layout.linears if kind is Kind.LINEAR else layout.experts
    if precision == "fp8" and not _even_tiles(shape):
        precision = "bf16"
    if precision == "fp8":
        N, K = shape
        tiles = (-(-N // FP8_BLOCK), -(-K // FP8_BLOCK))
        return {
            name: TensorSpec(torch.float8_e4m3fn, shape),
            parameter.scale_name: TensorSpec(layout.scale, tiles),
        }
    if precision == "fp4":
        N, K = shape
        if K % FP4_BLOCK:
            raise CheckpointError(f"{name}: FP4 needs a multiple of {FP4_BLOCK} columns, got {K}")
        return {
            name: TensorSpec(torch.int8, (N, K // 2)),
            parameter.scale_name: TensorSpec(torch.float8_e8m0fnu, (N, K // FP4_BLOCK)),
        }
    if kind is Kind.TABLE:
        return {name: TensorSpec(torch.int64, shape)}
    if kind is Kind.FLOAT or layout.linears == "fp32":
        return {name: TensorSpec(torch.float32, shape)}
    return {name: TensorSpec(torch.bfloat16, shape)}


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
    """The released shard of a tensor, from 1: embedding, layers, head and final norm, prediction block."""
    parts = name.split(".")
    if parts[0] == "embed":
        return 1
    if parts[0] == "layers":
        return int(parts[1]) + 2
    return config.num_hidden_layers + (3 if parts[0] == "mtp" else 2)


def _hc_head(prefix: str, config: ModelConfig) -> Iterator[Parameter]:
    copies = config.hc_mult
    yield Parameter(f"{prefix}hc_head_fn", Kind.FLOAT, (copies, copies * config.hidden_size))
    yield Parameter(f"{prefix}hc_head_base", Kind.FLOAT, (copies,))
    yield Parameter(f"{prefix}hc_head_scale", Kind.FLOAT, (1,))


def _block(prefix: str, layer: LayerSpec, config: ModelConfig) -> Iterator[Parameter]:
    yield from _attention(f"{prefix}attn.", layer, config)
    yield from _ffn(f"{prefix}ffn.", layer, config)
    yield Parameter(f"{prefix}attn_norm.weight", Kind.NORM, (config.hidden_size,))
    yield Parameter(f"{prefix}ffn_norm.weight", Kind.NORM, (config.hidden_size,))
    copies = config.hc_mult
    mixes = (2 + copies) * copies  # pre, post, and the copies x copies combination
    for part in ("attn", "ffn"):
        yield Parameter(f"{prefix}hc_{part}_fn", Kind.FLOAT, (mixes, copies * config.hidden_size))
        yield Parameter(f"{prefix}hc_{part}_base", Kind.FLOAT, (mixes,))
        yield Parameter(f"{prefix}hc_{part}_scale", Kind.FLOAT, (3,))


def _attention(prefix: str, layer: LayerSpec, config: ModelConfig) -> Iterator[Parameter]:
    D, H, C, Q = config.hidden_size, config.num_attention_heads, config.head_dim, config.q_lora_rank
    groups, rank = config.o_groups, config.o_lora_rank
    yield Parameter(f"{prefix}attn_sink", Kind.FLOAT, (H,))
    yield Parameter(f"{prefix}wq_a.weight", Kind.LINEAR, (Q, D))
    yield Parameter(f"{prefix}q_norm.weight", Kind.NORM, (Q,))
    yield Parameter(f"{prefix}wq_b.weight", Kind.LINEAR, (H * C, Q))
    yield Parameter(f"{prefix}wkv.weight", Kind.LINEAR, (C, D))
    yield Parameter(f"{prefix}kv_norm.weight", Kind.NORM, (C,))
    yield Parameter(f"{prefix}wo_a.weight", Kind.LINEAR, (groups * rank, H * C // groups))
    yield Parameter(f"{prefix}wo_b.weight", Kind.LINEAR, (D, groups * rank))
    if layer.ratio:
        overlapping = layer.kind == "csa"
        yield from _compressor(f"{prefix}compressor.", layer.ratio, overlapping, C, D)
        if overlapping:
            heads, dim = config.index_n_heads, config.index_head_dim
            yield from _compressor(f"{prefix}indexer.compressor.", layer.ratio, overlapping, dim, D)
            yield Parameter(f"{prefix}indexer.wq_b.weight", Kind.LINEAR, (heads * dim, Q))
            yield Parameter(f"{prefix}indexer.weights_proj.weight", Kind.PLAIN, (heads, D))


def _compressor(prefix: str, ratio: int, overlapping: bool, dim: int, D: int) -> Iterator[Parameter]:
    width = 2 * dim if overlapping else dim  # overlap: one half for this window, one for the next
    yield Parameter(f"{prefix}ape", Kind.FLOAT, (ratio, width))
    yield Parameter(f"{prefix}wkv.weight", Kind.WIDE, (width, D))
    yield Parameter(f"{prefix}wgate.weight", Kind.WIDE, (width, D))
    yield Parameter(f"{prefix}norm.weight", Kind.NORM, (dim,))


def _ffn(prefix: str, layer: LayerSpec, config: ModelConfig) -> Iterator[Parameter]:
    D, F, E = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
    yield Parameter(f"{prefix}gate.weight", Kind.WIDE, (E, D))
    if layer.routing is Routing.HASH:
        yield Parameter(f"{prefix}gate.tid2eid", Kind.TABLE, (config.vocab_size, config.num_experts_per_tok))
    else:
        yield Parameter(f"{prefix}gate.bias", Kind.FLOAT, (E,))
    shapes = {"w1": (F, D), "w2": (D, F), "w3": (F, D)}
    for e in range(E):
        for name, shape in shapes.items():
            yield Parameter(f"{prefix}experts.{e}.{name}.weight", Kind.EXPERT, shape)
    for name, shape in shapes.items():
        yield Parameter(f"{prefix}shared_experts.{name}.weight", Kind.LINEAR, shape)
