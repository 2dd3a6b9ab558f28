"""Memory of a step besides weights and cache: an estimate from above of the buffers of `dsv4/kernels/step/step.h`."""

from dsv4.config import AttentionKind, Mode, ModelConfig

MARGIN = 1.25  # for panels of matrix products, pieces of Python and of the allocator
TENSOR_BYTES = 3000  # of Python and torch objects for each tensor of a loaded model


def workspace_bytes(config: ModelConfig, mode: Mode, *, tokens: int, rows: int, context: int) -> int:
    """Bytes for steps of `tokens` new tokens and `rows` rows of logits, at most `context` tokens a sequence."""
    c, size = config, 4 if mode == "fp32" else 2
    streams = 3 * c.hc_mult * c.hidden_size * size
    hidden = c.hidden_size * (3 * size + 12)
    heads = c.num_attention_heads * c.head_dim * (size + 4)
    low = (c.o_groups * c.o_lora_rank + c.q_lora_rank + c.head_dim) * (size + 4)
    experts = (c.num_experts_per_tok + 1) * (2 * c.moe_intermediate_size + c.hidden_size) * 4
    compress = max((4 * layer.width(c.head_dim) * 4 for layer in c.layers if layer.ratio), default=0)
    index = 0
    if any(layer.kind is AttentionKind.CSA for layer in c.layers):
        index = c.index_n_heads * (c.index_head_dim * (size + 4) + 8) + c.index_topk * 8
    each = streams + hidden + heads + low + experts + compress + index
    entries = context // 4 * 4 * 4 if index else 0  # scores of a few queries over all compressed entries
    return int(MARGIN * (tokens * each + rows * c.vocab_size * 8 + entries))
