"""Sliding-window attention: each query reads the last `sliding_window` rows, its own included (report 2.3.3).

Legend: T tokens, D hidden size, L query latent, H heads, C head dim.
"""

from torch import Tensor

from dsv4.kernels.sparse_attention import KeySet
from dsv4.model.attention.shared import Attention
from dsv4.model.inputs import KeyBuffer
from dsv4.model.step import Step


class SlidingWindowAttention(Attention):
    """No compressed entries. Layers 0 and 1 of Flash, and the MTP block."""

    def keys(
        self, x_TD: Tensor, latent_TL: Tensor, q_THC: Tensor, kv_TC: Tensor, step: Step
    ) -> tuple[KeyBuffer, KeySet]:
        buffer = step.cache.layer(self.spec.index).append(kv_TC, None, None)
        return buffer, KeySet(buffer.window_T2, step.sequences.borders)
