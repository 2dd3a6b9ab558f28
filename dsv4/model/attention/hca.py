"""Heavily compressed attention: the window, and every visible entry of 128 tokens each (report 2.3.2, eqs 20-26).

Legend: T tokens, D hidden size, L query latent, H heads, C head dim, N finished entries.
"""

from torch import Tensor

from dsv4.config import LayerSpec, ModelConfig
from dsv4.kernels.sparse_attention import KeySet, Prefix
from dsv4.model.attention.compressor import Compressor
from dsv4.model.attention.shared import Attention
from dsv4.model.inputs import KeyBuffer
from dsv4.model.layers import Numerics
from dsv4.model.step import Step


class HeavilyCompressedAttention(Attention):
    """Dense over few entries; no indexer, no overlap."""

    def __init__(self, config: ModelConfig, spec: LayerSpec, numerics: Numerics) -> None:
        super().__init__(config, spec, numerics)
        self.compressor = Compressor(config, spec, config.head_dim, numerics)

    def keys(
        self, x_TD: Tensor, latent_TL: Tensor, q_THC: Tensor, kv_TC: Tensor, step: Step
    ) -> tuple[KeyBuffer, KeySet]:
        cache, blocks = step.cache.layer(self.spec.index), step.sequences.blocks[self.spec.ratio]
        entries_NC = self.store(self.compressor(x_TD, step, cache, "main"))
        buffer = cache.append(kv_TC, entries_NC, blocks)
        read = Prefix(blocks.visible_T, buffer.compressed.pages, blocks.longest)
        return buffer, KeySet(buffer.window_T2, step.sequences.borders, read)
