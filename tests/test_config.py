"""ModelConfig: both dialects of the released files, the plan they mean, and every refusal by field and range."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dsv4
from dsv4.config import AttentionKind, LayerSpec, ModelConfig, Routing, Yarn
from dsv4.testing.tiny import tiny_config, tiny_draft_config

PACKAGED = Path(dsv4.__file__).parent / "configs"
RELEASED = ["flash", "pro"]
PLANS = {"flash": {"swa": 2, "csa": 21, "hca": 20}, "pro": {"csa": 30, "hca": 31}}


def raw(name: str = "flash") -> dict[str, Any]:
    return json.loads((PACKAGED / f"{name}.json").read_text())


@pytest.mark.parametrize("name", RELEASED)
def test_both_dialects_mean_the_same_model(reference_data: Path, name: str) -> None:
    folder = reference_data / "configs"
    huggingface = ModelConfig.from_file(folder / f"{name}_hf_config.json")
    inference = ModelConfig.from_file(folder / f"{name}_inference_config.json")
    assert inference.expert_dtype == "fp4"
    # the first upload of Flash does not say how its experts are stored
    assert huggingface == inference.with_changes(expert_dtype="fp4" if name == "pro" else None)
    assert huggingface == ModelConfig.from_file(PACKAGED / f"{name}.json")
    assert huggingface.quantized


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_plan(name: str) -> None:
    config = ModelConfig.from_dict(raw(name))
    layers = config.layers
    assert Counter(spec.kind.value for spec in layers) == PLANS[name]
    assert [spec.index for spec in layers] == list(range(config.num_hidden_layers))
    assert [spec.routing for spec in layers] == [Routing.HASH] * 3 + [Routing.LEARNED] * (len(layers) - 3)
    first = AttentionKind.SWA if name == "flash" else AttentionKind.HCA
    assert [spec.kind for spec in layers[:2]] == [first] * 2
    for spec in layers[2:]:
        assert spec.kind is (AttentionKind.HCA if spec.index % 2 else AttentionKind.CSA)
    assert config.mtp_layers == (LayerSpec(len(layers), 0, Routing.LEARNED),)
    assert config.compressor_ratios == (4, 128)
    assert config.yarn == Yarn(16.0, 65536, 32.0, 1.0)


def test_a_release_with_draft_stages(reference_data: Path) -> None:
    config = ModelConfig.from_file(reference_data / "configs" / "flash0731_REAP160_hf_config.json")
    assert config.draft_stages == 3
    assert config.mtp_layers == ()
    assert config.n_routed_experts == 160
    assert Counter(spec.kind.value for spec in config.layers) == PLANS["flash"]
    written = config.to_dict()
    assert len(written["compress_ratios"]) == 46
    assert (written["dspark_block_size"], written["dspark_target_layer_ids"]) == (5, [40, 41, 42])
    assert ModelConfig.from_dict(written) == config


ROUND_TRIPS = {
    "flash": ModelConfig.from_dict(raw("flash")),
    "pro": ModelConfig.from_dict(raw("pro")),
    "draft head": tiny_draft_config(),
    "tiny": tiny_config(),
    "no yarn": tiny_config(yarn=None),
    "fp8 experts": tiny_config(quantized=True, expert_dtype="fp8"),
    "other numbers": tiny_config(rope_theta=5e5, swiglu_limit=0.0, yarn=Yarn(4.0, 8192, 16.0, 2.0), hc_eps=1e-5),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_what_is_written_reads_back_equal(name: str, tmp_path: Path) -> None:
    config = ROUND_TRIPS[name]
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert ModelConfig.from_file(tmp_path) == config
    assert ModelConfig.from_file(tmp_path / "config.json") == config


@pytest.mark.parametrize("name", RELEASED)
def test_what_is_written_keeps_every_released_field(name: str) -> None:
    """Other engines read fields that we do not."""
    written, released = ModelConfig.from_dict(raw(name)).to_dict(), raw(name)
    assert {key: written.get(key) for key in released if key != "transformers_version"} == {
        key: value for key, value in released.items() if key != "transformers_version"
    }


SHORT = [0, 4, 128]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "zero size": ({"hidden_size": 0}, r"hidden_size must be an integer in \[1, 65536\], got 0"),
    "negative": ({"index_topk": -3}, r"index_topk must be an integer in \[1, 1048576\], got -3"),
    "negative count": ({"num_hash_layers": -1}, r"num_hash_layers must be an integer in \[0, 1024\], got -1"),
    "zero scale": ({"routed_scaling_factor": 0}, r"routed_scaling_factor must be a number in \(0, 10000\], got 0"),
    "infinite": ({"rope_theta": float("inf")}, "rope_theta must be finite: .*, got inf"),
    "quantisation as text": ({"quantization_config": "fp8"}, "quantization_config must be an object, got 'fp8'"),
    "scaling as text": ({"rope_scaling": "yarn"}, "rope_scaling must be an object, got 'yarn'"),
    "nan": ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be finite: .*, got nan"),
    "negative limit": ({"swiglu_limit": -1}, r"swiglu_limit must be a number in \[0, .*, got -1"),
    "fraction": ({"vocab_size": 12.5}, "vocab_size must be an integer in .*, got 12.5"),
    "text": ({"head_dim": "512"}, "head_dim must be an integer in .*, got '512'"),
    "truth": ({"q_lora_rank": True}, "q_lora_rank must be an integer in .*, got True"),
    "text for a float": ({"rope_theta": "1e4"}, "rope_theta must be a number in .*, got '1e4'"),
    "two predictions": (
        {"num_nextn_predict_layers": 2, "compress_ratios": [*raw()["compress_ratios"], 0]},
        r"num_nextn_predict_layers must be an integer in \[0, 1\], got 2",
    ),
    "bos": ({"bos_token_id": 129280}, "bos_token_id must be below vocab_size 129280, got 129280"),
    "eos": ({"eos_token_id": 200000}, "eos_token_id must be below vocab_size 129280, got 200000"),
    "few ratios": ({"compress_ratios": SHORT}, "compress_ratios must have 44 entries .*43.*, got 3"),
    "no list": ({"compress_ratios": "4,128"}, "compress_ratios must be a list of integers, one per layer"),
    "list of text": ({"compress_ratios": ["4"]}, "compress_ratios must be a list of integers"),
    "unknown ratio": (
        {"compress_ratios": [0, 0, 8, *raw()["compress_ratios"][3:]]},
        r"compress_ratios\[2\] must be 0 .*, 4 .* or one of 16, 32, 64, 128, 256 \(HCA\), got 8",
    ),
    "compressed prediction": (
        {"compress_ratios": [*raw()["compress_ratios"][:-1], 4]},
        r"compress_ratios\[43\] belongs to a prediction layer and must be 0, got 4",
    ),
    "hash layers": ({"num_hash_layers": 44}, "num_hash_layers must be at most num_hidden_layers 43, got 44"),
    "odd rope": ({"qk_rope_head_dim": 63}, "qk_rope_head_dim must be even and at most head_dim 512 .* got 63"),
    "wide rope": ({"qk_rope_head_dim": 256}, "at most head_dim 512 and index_head_dim 128, got 256"),
    "groups": ({"o_groups": 7}, "o_groups must divide num_attention_heads 64, got 7"),
    "experts": ({"num_experts_per_tok": 257}, r"must be in \[1, n_routed_experts 256\], got 257"),
    "shared": ({"n_shared_experts": 2}, "n_shared_experts must be 1, got 2"),
    "index dim": ({"index_head_dim": 96}, r"index_head_dim must be a power of two \(Hadamard\), got 96"),
    "scores": ({"scoring_func": "sigmoid"}, "scoring_func must be 'sqrtsoftplus' in DeepSeek-V4, got 'sigmoid'"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
    "bias": ({"attention_bias": True}, "attention_bias must be False"),
    "tied": ({"tie_word_embeddings": True}, "tie_word_embeddings must be False"),
    "key heads": ({"num_key_value_heads": 8}, "num_key_value_heads must be 1 in DeepSeek-V4, got 8"),
    "another model": ({"model_type": "deepseek_v3"}, "model_type must be 'deepseek_v4'"),
    "expert dtype": ({"expert_dtype": "int4"}, "expert_dtype must be one of fp4, fp8, bf16, got 'int4'"),
    "rope kind": ({"rope_scaling": {"type": "linear"}}, "rope_scaling.type must be 'yarn' or 'default', got 'linear'"),
    "rope part": ({"rope_scaling": {"type": "yarn", "factor": 16}}, "rope_scaling.* is missing"),
    "rope factor": (
        {"rope_scaling": {**raw()["rope_scaling"], "factor": 0}},
        r"rope_scaling.factor must be a number in \(0, .*, got 0",
    ),
    "format": (
        {"quantization_config": {**raw()["quantization_config"], "fmt": "e5m2"}},
        "quantization_config.fmt must be 'e4m3', got 'e5m2'",
    ),
    "block": (
        {"quantization_config": {**raw()["quantization_config"], "weight_block_size": [64, 64]}},
        r"quantization_config.weight_block_size must be \[128, 128\], got \[64, 64\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_contradiction_is_refused_with_field_and_range(name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict({**raw(), **change})


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "index_topk", "swiglu_limit", "o_groups"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} is missing"):
        ModelConfig.from_dict({key: value for key, value in raw().items() if key != field})


def test_there_is_no_default_plan() -> None:
    with pytest.raises(ValueError, match="compress_ratios must be a list of integers, one per layer, got None"):
        ModelConfig.from_dict({key: value for key, value in raw().items() if key != "compress_ratios"})


def test_changes_are_checked_again() -> None:
    with pytest.raises(ValueError, match="o_groups must divide num_attention_heads 4, got 3"):
        tiny_config().with_changes(o_groups=3)
    assert tiny_config().with_changes(o_groups=4).o_groups == 4


def test_the_inference_dialect_refuses_too(reference_data: Path) -> None:
    inference = json.loads((reference_data / "configs" / "flash_inference_config.json").read_text())
    for change, message in (
        ({"score_func": "softmax"}, "score_func must be 'sqrtsoftplus'"),
        ({"window_size": 0}, r"sliding_window must be an integer in \[1, 1048576\], got 0"),
        ({"n_layers": 40}, "compress_ratios must have 41 entries"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig.from_dict({**inference, **change})


def _missing(folder: Path) -> Path:
    return folder


def _file(content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "config.json").write_bytes(content)
        return folder

    return write


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_missing, FileNotFoundError, "no config.json at .*config.json"),
        (_file(b"{not json"), ValueError, "config.json: not valid JSON"),
        (_file(b"\xff\xfe\x00"), ValueError, "config.json: not valid JSON"),
        (_file(b"[1, 2]"), ValueError, "config.json: expected a JSON object, got list"),
        (_file(b"{}"), ValueError, "config.json: compress_ratios must be a list"),
    ],
)
def test_an_unreadable_file_is_named(
    make: Callable[[Path], Path], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        ModelConfig.from_file(make(tmp_path))


@pytest.mark.parametrize("field", ["rope_factor", "beta_fast", "beta_slow"])
def test_the_inference_dialect_needs_its_scaling(reference_data: Path, field: str) -> None:
    raw_inference = json.loads((reference_data / "configs" / "flash_inference_config.json").read_text())
    del raw_inference[field]
    with pytest.raises(ValueError, match=f"{field} is missing"):
        ModelConfig.from_dict(raw_inference)
