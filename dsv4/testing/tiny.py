"""A tiny V4 with every mechanism: all three attention kinds, hash and learned routing, MTP. Random weights."""

from typing import Any

import torch

from dsv4.config import DSpark, ModelConfig
from dsv4.model.init import init_weights
from dsv4.model.layers import FP32, Numerics
from dsv4.model.transformer import Transformer


def tiny_config(**changes: Any) -> ModelConfig:
    """About 0.2M parameters; `changes` replace fields."""
    fields: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_hash_layers": 1,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": 4,
        "head_dim": 32,
        "qk_rope_head_dim": 16,
        "q_lora_rank": 32,
        "o_groups": 2,
        "o_lora_rank": 32,
        "sliding_window": 128,
        "compress_ratios": (0, 4, 128, 4, 0),
        "index_n_heads": 16,
        "index_head_dim": 32,
        "index_topk": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "routed_scaling_factor": 1.5,
        "swiglu_limit": 1.0,
    }
    return ModelConfig(**{**fields, **changes})


def tiny_draft_config(**changes: Any) -> ModelConfig:
    """`tiny_config` with a draft head of two stages in place of the prediction block."""
    head = DSpark(stages=2, block_size=5, noise_token_id=96, markov_rank=16, target_layer_ids=(1, 3))
    return tiny_config(num_nextn_predict_layers=0, compress_ratios=(0, 4, 128, 4, 0, 0), dspark=head, **changes)


def tiny_model(
    config: ModelConfig | None = None, seed: int = 0, numerics: Numerics = FP32, **options: Any
) -> Transformer:
    """A tiny model whose gates, biases and connections are far from their neutral start, so that mistakes show."""
    model = init_weights(Transformer(config or tiny_config(), numerics, **options), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("_base", "attn_sink", ".ape", "norm.weight")):
                parameter += torch.randn(parameter.shape, generator=generator) * 0.3
            elif name.endswith("_scale"):
                parameter += torch.rand(parameter.shape, generator=generator)
            elif name.endswith("gate.bias"):
                parameter += torch.randn(parameter.shape, generator=generator) * 0.05
    return model.eval()
