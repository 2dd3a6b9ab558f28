"""The compressor: m tokens become one entry (report eqs 9-12 with overlap for CSA, 20-23 without for HCA).

Legend: T tokens, D hidden size, C head dim, W projection width (2 C with overlap), N finished entries, R gathered
rows (the kept tail, then new tokens), m tokens per entry.
"""

import torch
from torch import Tensor, nn

from dsv4.config import LayerSpec, ModelConfig
from dsv4.kernels import compress
from dsv4.kernels.rope import apply_rope
from dsv4.model.inputs import LayerCache, TailName
from dsv4.model.layers import KernelModule, Linear, Numerics, RMSNorm
from dsv4.model.step import Step


class Compressor(KernelModule):
    """Gated pooling with position biases, RMSNorm, then RoPE at the block's first token. Projections are fp32."""

    def __init__(self, config: ModelConfig, spec: LayerSpec, dim: int, numerics: Numerics) -> None:
        super().__init__()
        self.ratio, self.numerics = spec.ratio, numerics
        width = spec.width(dim)
        self.ape = nn.Parameter(torch.zeros(spec.ratio, width))
        self.wkv = Linear(config.hidden_size, width)
        self.wgate = Linear(config.hidden_size, width)
        self.norm = RMSNorm(dim, config.rms_norm_eps)

    def forward(self, x_TD: Tensor, step: Step, cache: LayerCache, tail: TailName) -> Tensor:
        """Entries finished in this step [N, C], rotated, in activation dtype; N may be 0."""
        blocks = step.sequences.blocks[self.ratio]
        bias_TW = self.ape.index_select(0, step.sequences.positions_T % self.ratio)
        rows_TW = torch.cat([self.wkv(x_TD), self.wgate(x_TD) + bias_TW], dim=1)
        kv_RW, score_RW = cache.join_tail(tail, rows_TW, blocks).chunk(2, dim=1)
        pooled_NC = compress.pool(kv_RW, score_RW, blocks.own_Nm, blocks.previous_Nm, impl=self.impl)
        entry_NC = self.norm(pooled_NC.to(self.numerics.activations))
        return apply_rope(entry_NC, step.rotations.entries[self.ratio], impl=self.impl)
