"""Parameters, FLOPs and cache bytes as arithmetic, without tensors (report 1, 4.2.1, figure 1).

FLOPs are in the report's unit, equivalent FP8 operations: BF16 counts twice, FP32 four times, FP4 indexer half, FP4
experts as FP8.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from dsv4.config import AttentionKind, LayerSpec, ModelConfig
from dsv4.parameters import Role, Storage, parameter_table

CONTEXTS = (4096, 16384, 65536, 262144, 1048576)
BF16_COST, _FP32, _FP4 = 2.0, 4.0, 0.5  # operations, in FP8 ones
_KV_BLOCK, _INDEX_BLOCK, _ROW_ALIGNMENT = 64, 32, 8


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Counts by part of the backbone; `mtp` is the prediction block or the draft head, not part of
    `total`."""

    embedding: int
    head: int
    attention: int  # queries, window keys, output, sinks
    compressors: int
    indexers: int
    routers: int
    routed_experts: int
    shared_experts: int
    hyper_connections: int
    norms: int
    active_experts: int  # the share of routed_experts one token meets
    mtp: int

    @property
    def total(self) -> int:
        return self.embedding + self.head + self._dense + self.routed_experts

    @property
    def active(self) -> int:
        """Per token, with the head and without the input embedding, as the report counts."""
        return self.head + self._dense + self.active_experts

    @property
    def _dense(self) -> int:
        dense = self.attention + self.compressors + self.indexers + self.routers
        return dense + self.shared_experts + self.hyper_connections + self.norms


@lru_cache(maxsize=16)
def parameters(config: ModelConfig) -> ParameterCounts:
    """Every stored number of the model, scales and hash tables not counted."""
    backbone: Counter[Role] = Counter()
    prediction = 0
    for parameter in parameter_table(config).values():
        if parameter.storage is Storage.TABLE:
            continue
        if parameter.prediction:
            prediction += parameter.numbers
        else:
            backbone[parameter.role] += parameter.numbers
    return ParameterCounts(
        embedding=backbone[Role.EMBEDDING],
        head=backbone[Role.HEAD],
        attention=backbone[Role.ATTENTION],
        compressors=backbone[Role.COMPRESSOR],
        indexers=backbone[Role.INDEXER],
        routers=backbone[Role.ROUTER],
        routed_experts=backbone[Role.EXPERT],
        shared_experts=backbone[Role.SHARED_EXPERT],
        hyper_connections=backbone[Role.HYPER_CONNECTION] + backbone[Role.HEAD_CONNECTION],
        norms=backbone[Role.NORM],
        active_experts=backbone[Role.EXPERT] // config.n_routed_experts * config.num_experts_per_tok,
        mtp=prediction,
    )


def entry_bytes(config: ModelConfig, itemsize: int | None = None) -> int:
    """One stored key-value entry. None is the release's packing (fp8 dims, bf16 rotary dims, one scale byte per 64,
    padded to 8: 584 for V4); a number is plain values of that many bytes."""
    if itemsize is not None:
        return config.head_dim * itemsize
    plain = config.head_dim - config.qk_rope_head_dim
    size = plain + 2 * config.qk_rope_head_dim + -(-plain // _KV_BLOCK)
    return -(-size // _ROW_ALIGNMENT) * _ROW_ALIGNMENT


def index_bytes(config: ModelConfig, itemsize: int | None = None) -> int:
    """One stored indexer key; None is the release's fp4 with one scale byte per 32 dims: 68 for V4."""
    if itemsize is not None:
        return config.index_head_dim * itemsize
    return config.index_head_dim // 2 + -(-config.index_head_dim // _INDEX_BLOCK)


def layer_kv_bytes_per_token(config: ModelConfig, spec: LayerSpec, itemsize: int | None = None) -> float:
    """Bytes that one more token of context adds to one layer, without its window."""
    if not spec.ratio:
        return 0.0
    index = index_bytes(config, itemsize) if spec.kind is AttentionKind.CSA else 0
    return (entry_bytes(config, itemsize) + index) / spec.ratio


def kv_bytes_per_token(config: ModelConfig, itemsize: int | None = None) -> float:
    """Bytes of one more token of context, without the window (report 5.2): 3,514.25 Flash, 5,031.44 Pro."""
    return sum(layer_kv_bytes_per_token(config, spec, itemsize) for spec in config.layers)


def window_bytes(config: ModelConfig, itemsize: int | None = None) -> int:
    """Bytes of the window rows of one sequence; they do not depend on its length."""
    return config.num_hidden_layers * config.sliding_window * entry_bytes(config, itemsize)


def kv_bytes(config: ModelConfig, tokens: int, itemsize: int | None = None) -> float:
    """Cache of one sequence of `tokens` tokens."""
    return kv_bytes_per_token(config, itemsize) * tokens + window_bytes(config, itemsize)


def keys_read(config: ModelConfig, position: int) -> tuple[int, int]:
    """What a token at `position` reads in all layers: key-value entries of windows and of compressed tokens, and
    indexer keys."""
    entries = min(position, config.sliding_window) * len(config.layers)
    indexed = 0
    for kind, ratio, layers in _compressed_layers(config):
        if kind is AttentionKind.CSA:
            entries += layers * min(config.index_topk, position // ratio)
            indexed += layers * (position // ratio)
        else:
            entries += layers * (position // ratio)
    return entries, indexed


@lru_cache(maxsize=16)
def _compressed_layers(config: ModelConfig) -> tuple[tuple[AttentionKind, int, int], ...]:
    """Kind, ratio, and the number of layers with both."""
    found = Counter((spec.kind, spec.ratio) for spec in config.layers if spec.ratio)
    return tuple((kind, ratio, layers) for (kind, ratio), layers in found.items())


@dataclass(frozen=True, slots=True)
class Flops:
    """Equivalent FP8 operations for one decoded token."""

    linear: float
    attention: float
    indexer: float

    @property
    def total(self) -> float:
        return self.linear + self.attention + self.indexer


def flops_per_token(config: ModelConfig, position: int) -> Flops:
    """One token decoded at `position` (report figure 1; docs/numerics.md says which precision each part counts at)."""
    c, p = config, parameters(config)
    wide = p.compressors + p.routers + p.hyper_connections
    linear = 2.0 * (p.active + wide * (_FP32 - 1) + p.head * (BF16_COST - 1))
    keys, indexed = keys_read(c, position)
    attention = BF16_COST * 4 * c.num_attention_heads * c.head_dim * keys
    return Flops(linear, attention, _FP4 * 2 * c.index_n_heads * c.index_head_dim * indexed)
