"""Multi-token prediction, depth 1 (report 2.4, as V3): from position i and token i+1, predict token i+2.

Legend: T tokens, S streams, D hidden size.
"""

import torch
from torch import Tensor, nn

from dsv4.config import LayerSpec, ModelConfig
from dsv4.model.block import Block
from dsv4.model.layers import Linear, Numerics, RMSNorm
from dsv4.model.step import Step


class MultiTokenPredictor(Block):
    """A sliding-window block over [embedding of the next token + the backbone's streams], with its own collapse."""

    def __init__(
        self, config: ModelConfig, spec: LayerSpec, numerics: Numerics, *, stored_experts: bool = False
    ) -> None:
        super().__init__(config, spec, numerics, stored_experts=stored_experts)
        dim, dtype = config.hidden_size, numerics.activations
        self.e_proj = Linear(dim, dim, dtype)
        self.h_proj = Linear(dim, dim, dtype)
        self.enorm = RMSNorm(dim, config.rms_norm_eps)
        self.hnorm = RMSNorm(dim, config.rms_norm_eps)
        self.norm = RMSNorm(dim, config.rms_norm_eps)
        self.hc_head_fn = nn.Parameter(torch.zeros(config.hc_mult, config.hc_mult * dim))
        self.hc_head_base = nn.Parameter(torch.zeros(config.hc_mult))
        self.hc_head_scale = nn.Parameter(torch.zeros(1))

    def predict(self, embedding_TD: Tensor, x_TSD: Tensor, step: Step) -> Tensor:
        """New streams [T, S, D] from the next token's embedding and the backbone's streams before its collapse."""
        joined_TSD = self.e_proj(self.enorm(embedding_TD))[:, None] + self.h_proj(self.hnorm(x_TSD))
        return self(joined_TSD, step)
