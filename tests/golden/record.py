"""Record `reference/tiny_release`: a small checkpoint in the released layout, and the logits of transformers.

    python tests/golden/record.py

transformers' DeepseekV4ForCausalLM is an implementation of its own; it computes in float32 on dequantised weights.
"""

import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from dsv4.checkpoint import RELEASE, convert, save_checkpoint
from dsv4.testing.tiny import tiny_config, tiny_model

LENGTH = 160  # more than a window, and one entry of the heavily compressed layer


def main() -> None:
    folder = Path(__file__).parent / "reference" / "tiny_release"
    config = tiny_config(
        quantized=True,
        expert_dtype="fp4",
        num_hidden_layers=3,
        num_nextn_predict_layers=0,
        compress_ratios=(0, 4, 128),
        n_routed_experts=4,
        max_position_embeddings=4096,
    )
    save_checkpoint(folder, config, tiny_model(config, seed=7).state_dict(), RELEASE, max_shard_bytes=1 << 30)
    with tempfile.TemporaryDirectory() as plain:
        # NOTE: transformers reads scales of blocks that are not full differently, and only on a GPU
        convert(folder, Path(plain) / "fp32", dtype="fp32")
        model = transformers.DeepseekV4ForCausalLM.from_pretrained(
            Path(plain) / "fp32", dtype=torch.float32, attn_implementation="eager"
        ).eval()
    ids_1T = torch.randint(config.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        logits = model(input_ids=ids_1T, use_cache=False).logits
    save_file({"input_ids": ids_1T, "logits": logits}, folder / "reference_fp32.safetensors")


if __name__ == "__main__":
    main()
