"""Folders that others made from a release: each row of docs/checkpoints.md does what it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dsv4
from dsv4.checkpoint import FP32, check_folder, convert, open_folder, save_checkpoint
from dsv4.config import ModelConfig
from dsv4.planning.files import ModelFiles
from dsv4.testing.tiny import tiny_config, tiny_model
from tests.checkpoint.folders import Tensors, edit_config, refused, rewrite, state
from tests.checkpoint.test_requantized import (
    fp8_blocks,
    gptq,
    nvfp4_compressed_tensors,
    nvfp4_modelopt,
    requantise,
    w4a16,
)

IDS = list(range(2, 90))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in float32."""
    folder = tmp_path_factory.mktemp("source") / "model"
    config = tiny_config(sliding_window=16, max_position_embeddings=4096)
    save_checkpoint(folder, config, tiny_model(config).state_dict(), FP32)
    return folder


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Callable[[], Path]:
    import shutil

    return lambda: shutil.copytree(source, tmp_path / "copy")


def logits(folder: Path) -> Tensor:
    return dsv4.load(folder, context_length=256, memory=64 << 20).logits(IDS)


# Bounds of the logits' relative error, about twice what was measured: experts alone, or attention too.
@pytest.mark.parametrize(
    ("experts", "linears", "bound"),
    [
        (nvfp4_modelopt, None, 0.25),
        (nvfp4_compressed_tensors, fp8_blocks, 0.25),
        (w4a16, fp8_blocks, 0.25),
        (gptq, None, 0.25),
    ],
)
def test_logits_of_a_conversion(
    source: Path,
    copy: Callable[[], Path],
    tmp_path: Path,
    experts: Callable[[Tensor], Tensors],
    linears: Callable[[Tensor], Tensors] | None,
    bound: float,
) -> None:
    folder = rewrite(copy(), requantise(experts, linears))
    convert(folder, tmp_path / "fp32", dtype="fp32")
    convert(folder, tmp_path / "fp8", experts="fp8")
    wanted, got, rounded = logits(source), logits(tmp_path / "fp32"), logits(tmp_path / "fp8")
    error = float((got - wanted).norm() / wanted.norm())
    again = float((rounded - got).norm() / got.norm())
    assert 0.001 < error < bound
    assert 0.001 < again < bound


VISION = {
    "vision_n_layers": 2,
    "vision_dim": 16,
    "vision_n_heads": 2,
    "vision_inter_dim": 32,
    "vision_patch_size": 14,
    "vision_rope_theta": 10000,
    "vision_downsample_ratio": 3,
    "vision_max_n_token": 384,
    "vision_min_pixels": 147456,
    "vision_max_wh_ratio": 8,
    "rms_norm_eps": 1e-20,
}


def test_a_model_with_an_image_encoder_answers_text(copy: Callable[[], Path], source: Path, tmp_path: Path) -> None:
    def add_images(tensors: Tensors) -> None:
        tensors |= {
            "vision.blocks.0.attn.wqkv.weight": torch.randn(48, 16),
            "vision.patch_embed.proj.weight": torch.randn(16, 588),
            "aligner.w1.weight": torch.randn(64, 144),
            **{f"image_{part}": torch.randn(64) for part in ("start", "end", "newline", "pad")},
            **{f"layers.{i}.ffn.gate.bias_vl": torch.randn(8) for i in range(4)},
            "layers.0.ffn.gate.bias": torch.randn(8),  # of a hash layer: only image tokens would use it
        }

    plain = edit_config(copy(), rms_norm_eps=1e-20)
    wanted = logits(plain)
    folder = edit_config(rewrite(plain, add_images), **VISION)
    report = check_folder(folder)
    assert report.ok, report.problems
    assert [note.split(": ", 1)[1] for note in report.notes] == [
        "routing biases of hash layers are left out: they route by token (1 tensors)",
        "the image encoder is left out: the model answers text only (11 tensors)",
    ]
    with pytest.warns(UserWarning, match="answers text only"), pytest.warns(UserWarning, match="route by token"):
        assert torch.equal(logits(folder), wanted)
    convert(folder, tmp_path / "out", dtype="fp32")
    assert check_folder(tmp_path / "out").notes == ()
    assert torch.equal(logits(tmp_path / "out"), wanted)


@pytest.mark.parametrize("kept", [6, 5])
def test_a_pruned_model(copy: Callable[[], Path], source: Path, kept: int) -> None:
    """REAP removes experts from every layer and renumbers the rest, in routers and in tables."""
    order = {layer: sorted(torch.randperm(8)[:kept].tolist()) for layer in range(5)}

    def prune(tensors: Tensors) -> None:
        for layer, experts in order.items():
            prefix = f"layers.{layer}.ffn." if layer < 4 else "mtp.0.ffn."
            stored = {name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{prefix}experts.")}
            for new, old in enumerate(experts):
                for w in "123":
                    tensors[f"{prefix}experts.{new}.w{w}.weight"] = stored[f"{prefix}experts.{old}.w{w}.weight"]
            tensors[f"{prefix}gate.weight"] = tensors[f"{prefix}gate.weight"][experts]
            if f"{prefix}gate.tid2eid" in tensors:
                tensors[f"{prefix}gate.tid2eid"] = tensors[f"{prefix}gate.tid2eid"] % kept
            else:
                tensors[f"{prefix}gate.bias"] = tensors[f"{prefix}gate.bias"][experts]

    pruning = {"method": "REAP", "kept_experts_per_layer": kept, "original_experts_per_layer": 8}
    folder = edit_config(rewrite(copy(), prune), n_routed_experts=kept, reap_pruning=pruning)
    assert check_folder(folder).ok
    assert logits(folder).isfinite().all()
    edit_config(folder, n_routed_experts=8)
    assert refused(folder) == f"{folder}: the files have {kept} experts a layer, n_routed_experts is 8"


def test_layers_with_different_numbers_of_experts_are_refused_in_one_sentence(copy: Callable[[], Path]) -> None:
    def prune(tensors: Tensors) -> None:
        tensors["layers.2.ffn.gate.weight"] = tensors["layers.2.ffn.gate.weight"][:5]

    folder = rewrite(copy(), prune)
    said = refused(folder)
    assert "8 in 3 layers (first: layers.0), 5 in 1 layers (first: layers.2)" in said
    assert len(check_folder(folder).problems) == 1


def test_copies_in_the_prediction_block_are_left_out(copy: Callable[[], Path], source: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["mtp.0.emb.tok_emb.weight"] = tensors["embed.weight"].clone()
        tensors["mtp.0.head.weight"] = tensors["head.weight"].clone()

    folder = rewrite(copy(), add)
    assert "copies of embedding and head in the prediction block are left out" in open_folder(folder).notes[0]
    assert state(folder).keys() == state(source).keys()


def test_the_number_beside_draft_keys_may_count_the_stages() -> None:
    raw = tiny_config().to_dict()
    raw |= {"dspark_block_size": 5, "num_nextn_predict_layers": 3, "compress_ratios": [0, 4, 128, 4, 0, 0, 0]}
    raw |= {"dspark_markov_rank": 8, "dspark_noise_token_id": 96, "dspark_target_layer_ids": [1, 2, 3]}
    assert ModelConfig.from_dict(raw).draft_stages == 3
    with pytest.raises(ValueError, match=r"num_nextn_predict_layers must be an integer in \[0, 1\], got 3"):
        ModelConfig.from_dict({name: value for name, value in raw.items() if not name.startswith("dspark_")})


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "mixed-precision",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {"format": "float-quantized", "targets": ["re:.*attn.*(fused_wqa_wkv|wq_b|wo_a|wo_b)$"]},
        "group_1": {"format": "nvfp4-pack-quantized", "targets": ["re:.*ffn.*(gate|up|down)_proj$"]},
    },
    "ignore": [],
    "sparsity_config": {},
    "transform_config": {},
    "kv_cache_scheme": None,
}


def test_a_folder_of_llm_compressor_with_its_config(copy: Callable[[], Path], source: Path, tmp_path: Path) -> None:
    """Names of transformers, no prediction block, ratios of the backbone only, null for fields of other models."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("mtp.")]:
            del tensors[name]
        requantise(nvfp4_compressed_tensors, fp8_blocks)(tensors)
        words = ((".attn.", ".self_attn."), (".ffn.", ".mlp."), (".w1.", ".gate_proj."), (".w2.", ".down_proj."))
        for name in [name for name in tensors if name.startswith("layers.") and ".experts." in name]:
            new = f"model.{name}".replace(".w3.", ".up_proj.")
            for ours, theirs in words:
                new = new.replace(ours, theirs)
            tensors[new] = tensors.pop(name)

    rope = {"rope_type": "yarn", "type": "yarn", "factor": 16, "original_max_position_embeddings": 65536}
    rope |= {"beta_fast": 32, "beta_slow": 1, "rope_theta": 10000, "partial_rotary_factor": 0.5}
    folder = edit_config(
        rewrite(copy(), change),
        quantization_config=COMPRESSED,
        expert_dtype="fp4",
        compress_ratios=[0, 4, 128, 4],
        rope_scaling=None,
        rope_parameters=rope,
        compress_rope_parameters={**rope, "rope_theta": 160000},
        rope_interleave=True,
        kv_lora_rank=None,
        first_k_dense_replace=None,
        qk_nope_head_dim=16,
    )
    assert "NVFP4 (compressed-tensors)" in refused(folder)
    opened = open_folder(folder)
    with pytest.raises(ValueError, match="NVFP4"):  # before anything is planned or allocated
        ModelFiles.of_folder("model", opened.config, opened.reader)
    convert(folder, tmp_path / "out", dtype="fp32")
    got, wanted = logits(tmp_path / "out"), logits(source)
    assert float((got - wanted).norm() / wanted.norm()) < 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "'bitsandbytes' is not read"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "'awq' is not read: fp8, compressed-tensors"),
        ({"quantization_config": {"quant_method": "exl3", "bits": 2.5}}, "'exl3' is not read"),
        ({"quantization_config": {"quant_method": "quark"}}, "'quark' is not read"),
        ({"quantization_config": {"group_size": 64, "bits": 8}}, "quant_method None is not read"),
        ({"quantization": {"group_size": 64, "bits": 8}}, r"quantization \(MLX\)"),
        ({"quantize": "w8a8_dynamic"}, r"quantize \(msModelSlim\) 'w8a8_dynamic' is not read"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}, "weight_block_size must be"),
        (
            {"quantization_config": {"quant_method": "fp8", "moe_quant_algo": "IQ3_WIRE"}},
            "moe_quant_algo 'IQ3_WIRE' of fp8 is not read, only NVFP4",
        ),
        (
            {"quantization_config": {**COMPRESSED, "format": "marlin-24"}},
            "format 'marlin-24' of compressed-tensors is not read, only dense, float-quantized",
        ),
        (
            {"quantization_config": {**COMPRESSED, "config_groups": {"g": {"format": "mxfp6-pack-quantized"}}}},
            r"config_groups\.g\.format 'mxfp6-pack-quantized' is not read",
        ),
        ({"quantization_config": {**COMPRESSED, "transform_config": {"r": 1}}}, "transform_config must be empty"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}}, "'NVFP4_AWQ' of modelopt"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "sym": False}}, "sym False of gptq is not read"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3, "sym": True}}, "bits 3 of gptq is not read"),
        ({"quantization_config": {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_awq"}},
         "packing_format 'auto_round:auto_awq' of auto-round is not read"),
        ({"n_routed_experts": [8, 6, 8, 8]}, r"n_routed_experts must be an integer in \[1, 4096\], got \[8, 6, 8, 8\]"),
    ],
)  # fmt: skip
def test_other_methods_are_refused_by_name(copy: Callable[[], Path], change: dict[str, Any], message: str) -> None:
    folder = edit_config(copy(), **change)
    with pytest.raises(ValueError, match=message) as caught:
        open_folder(folder)
    assert str(caught.value) in check_folder(folder).problems


@pytest.mark.parametrize(
    "settings",
    [
        COMPRESSED,
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"},
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": True},
        {"quant_method": "auto-round", "bits": 4, "sym": True, "packing_format": "auto_round:auto_gptq"},
    ],
)
def test_known_methods_are_read(settings: dict[str, Any]) -> None:
    raw = tiny_config().to_dict() | {"quantization_config": settings, "expert_dtype": "int4"}
    config = ModelConfig.from_dict(json.loads(json.dumps(raw)))
    assert (config.quantized, config.expert_dtype) == (True, None)
