"""The three attention layers of the report: sliding window, compressed sparse, heavily compressed (2.3)."""

from dsv4.config import AttentionKind, LayerSpec, ModelConfig
from dsv4.model.attention.csa import CompressedSparseAttention
from dsv4.model.attention.hca import HeavilyCompressedAttention
from dsv4.model.attention.shared import Attention
from dsv4.model.attention.swa import SlidingWindowAttention
from dsv4.model.layers import Numerics


def make_attention(config: ModelConfig, spec: LayerSpec, numerics: Numerics) -> Attention:
    """The attention of one layer of the plan."""
    kinds: dict[AttentionKind, type[Attention]] = {
        AttentionKind.SWA: SlidingWindowAttention,
        AttentionKind.CSA: CompressedSparseAttention,
        AttentionKind.HCA: HeavilyCompressedAttention,
    }
    return kinds[spec.kind](config, spec, numerics)


__all__ = ["Attention", "make_attention"]
