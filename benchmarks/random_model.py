"""Write a random checkpoint of a named shape, for measuring speed.

    .venv/bin/python benchmarks/random_model.py b120m /tmp/b120m

b120m: about 120M parameters, all attention kinds, plain bf16 files that transformers loads too.
"""

import argparse
from pathlib import Path

from dsv4.checkpoint import BF16, save_checkpoint
from dsv4.config import ModelConfig
from dsv4.model.accounting import parameters
from dsv4.model.init import init_weights
from dsv4.model.transformer import Transformer

SHAPES = {
    "b120m": ModelConfig(
        vocab_size=8192,
        hidden_size=512,
        num_hidden_layers=8,
        num_hash_layers=2,
        num_nextn_predict_layers=0,
        num_attention_heads=8,
        head_dim=128,
        qk_rope_head_dim=64,
        q_lora_rank=256,
        o_groups=2,
        o_lora_rank=256,
        sliding_window=128,
        compress_ratios=(0, 0, 4, 128, 4, 128, 4, 128),
        index_n_heads=16,
        index_head_dim=128,
        index_topk=512,
        n_routed_experts=32,
        num_experts_per_tok=4,
        moe_intermediate_size=256,
        routed_scaling_factor=1.5,
        swiglu_limit=10.0,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    config = SHAPES[arguments.shape]
    model = init_weights(Transformer(config), seed=0)
    save_checkpoint(arguments.folder, config, model.state_dict(), BF16)
    count = parameters(config)
    print(f"{arguments.folder}: {count.total / 1e6:.1f}M parameters, {count.active / 1e6:.1f}M active")


if __name__ == "__main__":
    main()
