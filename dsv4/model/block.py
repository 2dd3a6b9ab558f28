"""One block: attention, then mixture of experts, each inside its own hyper-connection (report 2.2).

Legend: T tokens, S streams, D hidden size, X = (2 + S) * S mixes, Z = S * D.
"""

import torch
from torch import Tensor, nn

from dsv4.config import LayerSpec, ModelConfig
from dsv4.kernels.hyper_connection import combine
from dsv4.model.attention import make_attention
from dsv4.model.hyper_connection import enter
from dsv4.model.layers import KernelModule, Numerics, RMSNorm
from dsv4.model.moe import MoE
from dsv4.model.step import Step


class Block(KernelModule):
    """X <- B X + C F(norm(A X)), first with F = attention, then with F = MoE."""

    def __init__(
        self, config: ModelConfig, spec: LayerSpec, numerics: Numerics, *, stored_experts: bool = False
    ) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = make_attention(config, spec, numerics)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn = MoE(config, spec, numerics, stored_experts=stored_experts)
        mixes, width = (2 + config.hc_mult) * config.hc_mult, config.hc_mult * config.hidden_size
        self.hc_attn_fn = nn.Parameter(torch.zeros(mixes, width))
        self.hc_attn_base = nn.Parameter(torch.zeros(mixes))
        self.hc_attn_scale = nn.Parameter(torch.zeros(3))
        self.hc_ffn_fn = nn.Parameter(torch.zeros(mixes, width))
        self.hc_ffn_base = nn.Parameter(torch.zeros(mixes))
        self.hc_ffn_scale = nn.Parameter(torch.zeros(3))

    def forward(self, x_TSD: Tensor, step: Step) -> Tensor:
        y_TD, post, comb = enter(x_TSD, self.hc_attn_fn, self.hc_attn_scale, self.hc_attn_base, self.config, self.impl)
        x_TSD = combine(self.attn(self.attn_norm(y_TD), step), x_TSD, post, comb, self.impl)
        y_TD, post, comb = enter(x_TSD, self.hc_ffn_fn, self.hc_ffn_scale, self.hc_ffn_base, self.config, self.impl)
        return combine(self.ffn(self.ffn_norm(y_TD), step), x_TSD, post, comb, self.impl)
