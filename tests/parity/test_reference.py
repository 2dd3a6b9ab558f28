"""Our logits equal the recorded reference and transformers' own V4, in fp32."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dsv4.checkpoint import FP32 as FP32_LAYOUT
from dsv4.checkpoint import CheckpointReader, load_into, save_checkpoint
from dsv4.config import ModelConfig
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model

TOLERANCE = 2e-5
PLANS = {
    "flash-like": (0, 4, 128, 4, 0),
    "pro-like": (128, 128, 4, 128, 4, 0),
    "all sliding": (0, 0, 0),
    "no prediction": (4, 128, 4),
}
LENGTHS = (1, 3, 4, 127, 128, 129, 300)


@pytest.mark.parametrize("impl", [None, "torch", "reference"])
def test_recorded_logits(reference_folder: Path, impl: str | None) -> None:
    recorded = load_file(reference_folder / "reference_fp32.safetensors")
    config = ModelConfig.from_file(reference_folder)
    model = Transformer(config, impl=impl)
    load_into(model, config, CheckpointReader(reference_folder), "fp32")
    ids_BT = recorded["input_ids"]
    batch, length = ids_BT.shape
    with torch.inference_mode():
        x_TSD = model.hidden(ids_BT.flatten(), model.pack([length] * batch))
        torch.testing.assert_close(
            model.logits(x_TSD).view_as(recorded["logits"]), recorded["logits"], atol=TOLERANCE, rtol=0
        )
        if not config.num_nextn_predict_layers:
            return
        before_TSD = x_TSD.unflatten(0, (batch, length))[:, :-1].flatten(0, 1)
        ahead_TSD = model.mtp_hidden(before_TSD, ids_BT[:, 1:].flatten(), model.pack([length - 1] * batch))
        torch.testing.assert_close(
            model.mtp_logits(ahead_TSD).view_as(recorded["mtp_logits"]),
            recorded["mtp_logits"],
            atol=TOLERANCE,
            rtol=0,
        )


def plan_config(ratios: tuple[int, ...], **changes: Any) -> ModelConfig:
    prediction = 1 if ratios[-1] == 0 and len(ratios) > 3 else 0
    layers = len(ratios) - prediction
    return tiny_config(compress_ratios=ratios, num_hidden_layers=layers, num_nextn_predict_layers=prediction, **changes)


@pytest.mark.parametrize("plan", PLANS)
def test_transformers_agrees(plan: str, tmp_path: Path) -> None:
    """The folder we write loads in transformers, and every length gives the same logits, ours in one packed batch."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = plan_config(PLANS[plan], max_position_embeddings=4096)
    model = tiny_model(config, seed=len(plan))
    save_checkpoint(tmp_path, config, model.state_dict(), FP32_LAYOUT)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["compress_ratios"] == list(PLANS[plan])
    theirs = transformers.DeepseekV4ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).float().eval()
    prompts = [torch.randint(0, config.vocab_size, (length,)) for length in LENGTHS]
    with torch.inference_mode():
        ours = model.logits(model.hidden(torch.cat(prompts), model.pack(list(LENGTHS))))
        for prompt, own in zip(prompts, ours.split(LENGTHS), strict=True):
            expected = theirs(input_ids=prompt[None], use_cache=False).logits[0]
            torch.testing.assert_close(own, expected, atol=TOLERANCE, rtol=0)
