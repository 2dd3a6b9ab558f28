"""The part that all attention layers share (report 2.3): low-rank queries, one key-value head, sink, grouped output.

Legend: T tokens, H heads, C head dim, D hidden size, L query latent, G output groups, N finished entries, W window
rows, M entry rows, P frequency pairs.
"""

import torch
from torch import Tensor, nn

from dsv4.config import LayerSpec, ModelConfig
from dsv4.kernels import quant
from dsv4.kernels.rope import apply_rope
from dsv4.kernels.sparse_attention import KeySet, sparse_attention
from dsv4.model.inputs import KeyBuffer
from dsv4.model.layers import GroupedLinear, KernelModule, Linear, Numerics, RMSNorm, rms, straight_through
from dsv4.model.step import Step


class Attention(KernelModule):
    """Queries read rows of one buffer: the sliding window and, in subclasses, compressed entries.

    A subclass defines which entries it adds (`keys`).
    """

    def __init__(self, config: ModelConfig, spec: LayerSpec, numerics: Numerics) -> None:
        super().__init__()
        self.config, self.spec, self.numerics = config, spec, numerics
        heads, dim, dtype = config.num_attention_heads, config.head_dim, numerics.activations
        group_dim = heads * dim // config.o_groups
        self.attn_sink = nn.Parameter(torch.zeros(heads))
        self.wq_a = Linear(config.hidden_size, config.q_lora_rank, dtype)
        self.q_norm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.wq_b = Linear(config.q_lora_rank, heads * dim, dtype)
        self.wkv = Linear(config.hidden_size, dim, dtype)
        self.kv_norm = RMSNorm(dim, config.rms_norm_eps)
        self.wo_a = GroupedLinear(config.o_groups, group_dim, config.o_lora_rank, dtype)
        self.wo_b = Linear(config.o_groups * config.o_lora_rank, config.hidden_size, dtype)

    def forward(self, x_TD: Tensor, step: Step) -> Tensor:
        """Attention output [T, D]; adds this step's rows to the layer's cache."""
        rotation = step.rotations.of_tokens(self.spec.ratio)
        latent_TL = self.q_norm(self.wq_a(x_TD))
        q_THC = self.wq_b(latent_TL).unflatten(-1, (self.config.num_attention_heads, -1))
        q_THC = apply_rope(rms(q_THC, self.config.rms_norm_eps, self.impl), rotation, impl=self.impl)
        kv_TC = self.window_rows(x_TD, rotation)
        buffer, keys = self.keys(x_TD, latent_TL, q_THC, kv_TC, step)
        o_THC = sparse_attention(
            q_THC,
            buffer.window_WC,
            None if buffer.entries is None else buffer.entries.rows_MC,
            keys,
            self.attn_sink,
            scale=self.config.head_dim**-0.5,
            rope_dim=self.config.qk_rope_head_dim,
            impl=self.impl,
        )
        return self.project(apply_rope(o_THC, rotation, inverse=True, impl=self.impl))

    def keys(
        self, x_TD: Tensor, latent_TL: Tensor, q_THC: Tensor, kv_TC: Tensor, step: Step
    ) -> tuple[KeyBuffer, KeySet]:
        """Store this step's rows; return the buffer and what each query reads of it."""
        raise NotImplementedError

    def window_rows(self, x_TD: Tensor, rotation_2TP: Tensor) -> Tensor:
        """The uncompressed key-value row of each token [T, C], as the cache will hold it."""
        return self.store(apply_rope(self.kv_norm(self.wkv(x_TD)), rotation_2TP, impl=self.impl))

    def store(self, kv_C: Tensor) -> Tensor:
        """A key-value row as the cache will hold it: in release numerics all but the rotary dims go through fp8."""
        if not self.numerics.simulate:
            return kv_C
        split = self.config.head_dim - self.config.qk_rope_head_dim
        return torch.cat([straight_through(quant.simulate_fp8, kv_C[..., :split]), kv_C[..., split:]], dim=-1)

    def project(self, o_THC: Tensor) -> Tensor:
        """Grouped low-rank output: heads in G groups, each to o_lora_rank, then all to D."""
        return self.wo_b(self.wo_a(o_THC.reshape(o_THC.shape[0], self.config.o_groups, -1)))
