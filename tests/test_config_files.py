"""Config files as people have them: dialects, rotary fields, nulls, hostile content; each error is a sentence."""

import json
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import dsv4
from dsv4.config import ModelConfig, Yarn
from dsv4.config.generation_file import GenerationAdvice, read_generation
from dsv4.config.ranges import RANGES
from dsv4.testing.tiny import tiny_config, tiny_draft_config


def released() -> dict[str, Any]:
    return json.loads((Path(dsv4.__file__).parent / "configs" / "flash.json").read_text())


YARN = released()["rope_scaling"]
RIGHT = Yarn(16.0, 65536, 32.0, 1.0)


def with_rope(value: Any, name: str = "rope_parameters", **changes: Any) -> ModelConfig:
    raw = {**released(), **changes}
    del raw["rope_scaling"]
    return ModelConfig.from_dict({key: item for key, item in {**raw, name: value}.items() if item != "absent"})


NESTED = {
    "main": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.125},
    "compress": {**YARN, "rope_type": "yarn", "rope_theta": 160000.0, "attention_factor": 1.0},
}


@pytest.mark.parametrize(
    ("value", "yarn"),
    [
        (YARN, RIGHT),
        ({**YARN, "type": None, "rope_type": "yarn"}, RIGHT),
        ({**YARN, "rope_type": "yarn", "rope_theta": 10000}, RIGHT),
        ({**YARN, "rope_theta": 160000}, RIGHT),
        ({**YARN, "attention_factor": 1.0, "mscale": None, "mscale_all_dim": 0, "truncate": True}, RIGHT),
        ({"factor": 16, "original_max_position_embeddings": 65536}, RIGHT),
        ({**YARN, "factor": 4, "beta_fast": 64}, Yarn(4.0, 65536, 64.0, 1.0)),
        (NESTED, RIGHT),
        ({**NESTED, "main": {}}, RIGHT),
        ({"main": {"rope_theta": 10000.0}, "compress": {"rope_type": "default", "rope_theta": 160000.0}}, None),
        ({"rope_type": "default", "rope_theta": 10000.0}, None),
        (None, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_every_spelling_of_the_rotary_tables(value: Any, yarn: Yarn | None, name: str) -> None:
    config = with_rope(value, name)
    assert config.yarn == yarn
    assert (config.rope_theta, config.compress_rope_theta, config.qk_rope_head_dim) == (10000.0, 160000.0, 64)


def test_nested_thetas_and_dims_are_read_where_the_top_has_none() -> None:
    value = {
        "main": {"rope_theta": 5000.0, "partial_rotary_factor": 0.25},
        "compress": {**YARN, "rope_theta": 80000.0, "partial_rotary_factor": 0.25},
    }
    config = with_rope(value, rope_theta="absent", compress_rope_theta="absent", qk_rope_head_dim="absent")
    assert (config.rope_theta, config.compress_rope_theta, config.qk_rope_head_dim) == (5000.0, 80000.0, 128)
    flat = with_rope({**YARN, "rope_theta": 5000.0}, rope_theta="absent")
    assert (flat.rope_theta, flat.compress_rope_theta) == (5000.0, 160000.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({**YARN, "attention_factor": 1.2}, "rope_parameters.attention_factor must be 1"),
        ({**YARN, "mscale": 1.0}, "rope_parameters.mscale must be 0"),
        ({**YARN, "mscale_all_dim": 0.7}, "rope_parameters.mscale_all_dim must be 0"),
        ({**YARN, "truncate": False}, "rope_parameters.truncate must be True"),
        ({**YARN, "long_factor": [1.0]}, "rope_parameters.long_factor is not known"),
        ({**YARN, "type": "linear"}, "rope_parameters.type must be 'yarn' or 'default'"),
        ({**YARN, "type": None, "rope_type": "llama3"}, "rope_parameters.rope_type must be 'yarn'"),
        ({**YARN, "type": "yarn", "rope_type": "default"}, "rope_parameters.type must agree with rope_type"),
        ({**YARN, "type": "default"}, "has no meaning with rope_type 'default'"),
        ({**YARN, "factor": None}, "rope_parameters.factor is missing"),
        ({**YARN, "factor": "16"}, "rope_parameters.factor must be a number"),
        ({**YARN, "original_max_position_embeddings": 1.5}, "original_max_position_embeddings must be an integer"),
        ({**YARN, "beta_fast": 1}, "beta_fast must be above beta_slow"),
        ({**YARN, "rope_theta": 5000}, "rope_parameters.rope_theta must agree with rope_theta 10000, got 5000"),
        ({**YARN, "partial_rotary_factor": 0.5}, "partial_rotary_factor must agree with qk_rope_head_dim 64, got 256"),
        ({**NESTED, "main": {"rope_theta": 1e6}}, "rope_parameters.main.rope_theta must agree"),
        ({**NESTED, "main": YARN}, "rope_parameters.main.rope_type must be 'default'"),
        ({**NESTED, "compress": {**YARN, "rope_theta": 1e4}}, "rope_parameters.compress.rope_theta must agree"),
        ({**NESTED, "factor": 16}, "rope_parameters.factor must lie in rope_parameters.main or"),
        ({**NESTED, "compress": 3}, "rope_parameters.compress must be an object"),
        ("yarn", "rope_parameters must be an object"),
        ([1], "rope_parameters must be an object"),
    ],
)
def test_what_would_be_another_table_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_rope(value)


def test_two_rotary_objects_must_agree() -> None:
    raw = released()
    assert ModelConfig.from_dict({**raw, "rope_parameters": NESTED}).yarn == RIGHT
    with pytest.raises(ValueError, match="rope_parameters must say the same as rope_scaling"):
        ModelConfig.from_dict({**raw, "rope_parameters": {**YARN, "factor": 8}})
    assert ModelConfig.from_dict({**raw, "compress_rope_parameters": {**YARN, "rope_theta": 160000}}).yarn == RIGHT
    with pytest.raises(ValueError, match="compress_rope_parameters must say the same as rope_scaling"):
        ModelConfig.from_dict({**raw, "compress_rope_parameters": {**YARN, "factor": 8}})


@pytest.mark.parametrize("value", [[], False, 0, "", "yarn", [YARN]])
@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_a_rotary_field_that_is_no_object_does_not_turn_yarn_off(value: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an object"):
        with_rope(value, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rope_local_base_freq", 5000.0), ("rotary_dim", 32), ("rope_type", "yarn"), ("yarn", {}),
     ("rope_interleave", False), ("rotary_pct", 0.5), ("rotary_emb_base", 10000)],
)  # fmt: skip
def test_rotary_fields_of_other_models_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        ModelConfig.from_dict({**released(), name: value})
    assert ModelConfig.from_dict({**released(), name: None}) == ModelConfig.from_dict(released())
    assert ModelConfig.from_dict({**released(), "rope_interleave": True}) == ModelConfig.from_dict(released())


RATES = "compress_rates.heavily_compressed_attention"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 64}}, RATES),
        ({"compress_rate_hca": 64}, "compress_rate_hca"),
        ({"compress_rate_csa": 8}, "compress_rate_csa"),
        ({"compress_rate_hca": 64, "compress_rates": {"heavily_compressed_attention": 128}}, "compress_rate_hca"),
    ],
)
def test_rates_agree_with_the_plan_and_with_each_other(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message} must agree with "):
        ModelConfig.from_dict({**released(), **change})


@pytest.mark.parametrize("value", [0, False, ""])
def test_draft_stages_that_are_switched_off_are_none(value: Any) -> None:
    assert ModelConfig.from_dict({**released(), "dspark_block_size": value}).num_nextn_predict_layers == 1


def test_a_text_model_inside_another_one_is_told() -> None:
    with pytest.raises(ValueError, match="text_config must be absent"):
        ModelConfig.from_dict({"model_type": "deepseek_v4", "text_config": released()})


def in_transformers_words(config: ModelConfig) -> dict[str, Any]:
    """As transformers 5.23 saves it: no compress_ratios, no num_hash_layers."""
    raw = config.to_dict()
    del raw["compress_ratios"], raw["num_hash_layers"], raw["rope_scaling"]
    hashed = config.num_hash_layers
    raw["mlp_layer_types"] = ["hash_moe"] * hashed + ["moe"] * (config.num_hidden_layers - hashed)
    raw["rope_parameters"] = NESTED | {"main": {"rope_theta": 10000.0}}
    raw["partial_rotary_factor"] = config.qk_rope_head_dim / config.head_dim
    return raw


@pytest.mark.parametrize("hca", [16, 128])
def test_the_dialect_of_transformers(hca: int) -> None:
    config = tiny_config(compress_ratios=(0, 4, hca, 4, 0))
    assert ModelConfig.from_dict(in_transformers_words(config)) == config
    assert ModelConfig.from_dict({**config.to_dict(), **in_transformers_words(config)}) == config  # both at once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types must have num_hidden_layers 4 entries, got 3"),
        ({"layer_types": ["full_attention"] * 4}, r"layer_types\[0\] must be one of sliding_attention"),
        ({"layer_types": "sliding_attention"}, "layer_types must be a list of names"),
        ({"compress_rates": {}}, "compress_rates.compressed_sparse_attention is missing"),
        ({"compress_rates": {"compressed_sparse_attention": 8}}, "compress_ratios|compress_rates"),
        ({"mlp_layer_types": ["moe", "hash_moe", "moe", "moe"]}, "mlp_layer_types must be hash_moe in the first"),
        ({"num_hash_layers": 3}, "mlp_layer_types must agree with num_hash_layers 3, got 1"),
        ({"compress_ratios": [4, 4, 128, 4, 0]}, "layer_types must agree with compress_ratios"),
        ({"vocab_size": None}, "vocab_size is missing|transformers"),
    ],
)
def test_contradictions_of_the_dialects_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict({**in_transformers_words(tiny_config()), **change})


def test_what_we_write_says_the_plan_in_both_dialects() -> None:
    raw = tiny_config(compress_ratios=(0, 4, 16, 4, 0)).to_dict()
    assert raw["layer_types"][:3] == [
        "sliding_attention",
        "compressed_sparse_attention",
        "heavily_compressed_attention",
    ]
    assert raw["compress_rates"] == {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16}
    two_rates = tiny_config(compress_ratios=(0, 4, 16, 128, 0)).to_dict()
    assert "layer_types" not in two_rates  # transformers has one rate for all HCA layers
    assert ModelConfig.from_dict(two_rates).compress_ratios == (0, 4, 16, 128, 0)


def test_transformers_opens_what_we_write() -> None:
    transformers = pytest.importorskip("transformers")
    for ratios in ((0, 4, 128, 4, 0), (0, 4, 16, 4, 0), (0, 0, 0, 0, 0), (4, 4, 4, 4, 0)):
        raw = tiny_config(compress_ratios=ratios).to_dict()
        theirs = transformers.DeepseekV4Config(**raw)
        assert len(theirs.layer_types) == 4
        again = json.loads(theirs.to_json_string())
        assert ModelConfig.from_dict(again).compress_ratios == ratios


@pytest.mark.parametrize("name", sorted(released()))
def test_null_means_not_there(name: str) -> None:
    raw = released()
    without = {key: value for key, value in raw.items() if key != name}

    def read(values: dict[str, Any]) -> Any:
        try:
            return ModelConfig.from_dict(values)
        except ValueError as error:
            return str(error)

    assert read({**raw, name: None}) == read(without)


@pytest.mark.parametrize("name", ["dspark_block_size", "dspark_markov_rank", "vision_config", "rope_parameters"])
def test_null_of_a_field_that_others_have(name: str) -> None:
    assert ModelConfig.from_dict({**released(), name: None}) == ModelConfig.from_dict(released())


@pytest.mark.parametrize(
    ("blocks", "extra", "expected"), [(1, 1, 1), (1, 0, 1), (0, 0, 0), (0, 1, 0), (0, 3, 0), (None, 0, 0), (None, 1, 1)]
)
def test_each_trace_of_a_prediction_block(blocks: int | None, extra: int, expected: int) -> None:
    raw = tiny_config().to_dict()
    raw |= {"num_nextn_predict_layers": blocks, "compress_ratios": [0, 4, 128, 4, *[0] * extra]}
    config = ModelConfig.from_dict(raw)
    assert (config.num_nextn_predict_layers, len(config.compress_ratios)) == (expected, 4 + expected)


def test_draft_stages_are_counted_by_their_ratios() -> None:
    config = ModelConfig.from_dict({**tiny_draft_config().to_dict(), "compress_ratios": [0, 4, 128, 4, 0, 0, 0]})
    assert (config.num_nextn_predict_layers, config.draft_stages) == (0, 3)
    assert config.layers == tiny_config().layers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dspark_markov_rank": None}, "dspark_markov_rank is missing"),
        ({"dspark_block_size": 65}, r"dspark_block_size must be an integer in \[1, 64\]"),
        ({"dspark_noise_token_id": 97}, "dspark_noise_token_id must be below vocab_size 97"),
        ({"dspark_target_layer_ids": [1, 4]}, "dspark_target_layer_ids must be ascending layer numbers in"),
        ({"dspark_target_layer_ids": [1, 1]}, "dspark_target_layer_ids must be ascending"),
        ({"dspark_target_layer_ids": "1"}, "dspark_target_layer_ids must be a list"),
        ({"compress_ratios": [0, 4, 128, 4]}, "compress_ratios must end with a 0 for each draft stage"),
        ({"compress_ratios": [0, 4, 128, 4, 0, 4]}, "belongs to a prediction layer and must be 0"),
    ],
)
def test_a_draft_head_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict({**tiny_draft_config().to_dict(), **change})


def test_a_list_of_end_tokens() -> None:
    raw = {**tiny_config().to_dict(), "eos_token_id": [1, 5, 5, 7]}
    config = ModelConfig.from_dict(raw)
    assert (config.eos_token_id, config.end_tokens) == (1, (1, 5, 7))
    assert ModelConfig.from_dict(config.to_dict()) == config
    for value, message in (
        ([], "eos_token_id must be"),
        ([1, 97], "below vocab_size 97"),
        (["1"], "eos_token_id must"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig.from_dict({**raw, "eos_token_id": value})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "deepseek_v41", "architectures": ["DeepseekV41ForCausalLM"]}, "V4.1"),
        ({"architectures": ["DeepseekV41ForCausalLM"]}, "V4.1"),
        ({"model_type": "deepseek_v3"}, "got 'deepseek_v3'"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures must name DeepseekV4ForCausalLM"),
        ({"architectures": "DeepseekV4ForCausalLM"}, "architectures must be a list"),
        ({"vision_config": {"depth": 32}}, "vision_config"),
    ],
)
def test_other_models_are_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ModelConfig.from_dict({**released(), **change})


def test_every_number_has_a_range() -> None:
    numbers = {field.name for field in fields(ModelConfig) if field.type in (int, float)}
    assert numbers == set(RANGES)


HOSTILE = (
    -1,
    10**9,
    2**62,
    10**18,
    1e300,
    -0.5,
    float("nan"),
    float("inf"),
    True,
    "8",
    [],
    {},
    [[]],
    {"a": [1]},
    10**4000,
)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_hostile_numbers_end_in_a_sentence_with_field_and_range(name: str) -> None:
    kind, low, high = RANGES[name]
    for value in HOSTILE:
        if not isinstance(value, bool) and isinstance(value, int | float) and low <= value <= high:
            continue
        if name == "eos_token_id" and isinstance(value, list):
            continue
        began = time.perf_counter()
        with pytest.raises(ValueError, match=name) as caught:
            ModelConfig.from_dict({**released(), name: value})
        assert len(str(caught.value)) < 300
        assert f"{high:g}" in str(caught.value) or str(high) in str(caught.value) or kind is float
        assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 2_000_000, "compress_ratios": [0] * 2_000_001},
        {"num_hidden_layers": 1024, "n_routed_experts": 4096, "compress_ratios": [0] * 1025},
        {"compress_ratios": [2**70] * 44},
        {"compress_ratios": [[[]]] * 44},
        {"compress_ratios": {"0": 4}},
        {"quantization_config": [1]},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": {"a": 1}}},
        {"expert_dtype": []},
        {"expert_dtype": {"a": 1}},
        {"scoring_func": {}},
        {"model_type": [10**9] * 1000},
        {"tie_word_embeddings": "false"},
        {"norm_topk_prob": 1},
    ],
)
def test_hostile_structures_end_in_a_sentence(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^\w+") as caught:
        ModelConfig.from_dict({**released(), **change})
    assert len(str(caught.value)) < 400


def content(change: dict[str, Any] | None = None) -> str:
    return json.dumps({**tiny_config().to_dict(), **(change or {})}, indent=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"   ", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "a number has more than 4,300 digits"),
        (content().encode("utf-16"), "UTF-16"),
        (content().encode("utf-16-le"), "UTF-16"),
        (content().encode("utf-32"), "UTF-16 or UTF-32"),
        (b'{\n"a": "caf\xe9"}', r"not valid UTF-8 at byte 11 \(line 2\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"\n  <html>403</html>", "an HTML page"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"\x1f\x8b\x08\0", "compressed with gzip"),
        (b"PK\x03\x04", "pickle"),
        (b"\0" * 4096, "begins with zeros"),
        (b'"text"', "expected a JSON object, got str"),
        (
            content().replace('"index_topk": 8', '"index_topk": 8,\n "index_topk": 9').encode(),
            r"'index_topk' occurs twice",
        ),
        (content({"hidden_size": 2**62}).encode(), r"config.json, line 7: hidden_size must be an integer in"),
        (b'{"vocab_size": NaN, "compress_ratios": [0]}', "config.json, line 1: vocab_size must be finite"),
    ],
)
def test_a_file_that_is_no_config_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig.from_file(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "config.json"))


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + content().encode())
    assert ModelConfig.from_file(tmp_path) == tiny_config()


def test_a_config_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ValueError, match=r"config\.json: a folder, not a regular file"):
        ModelConfig.from_file(tmp_path)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ({}, GenerationAdvice()),
        ({"temperature": 0.5, "top_p": 0.9, "eos_token_id": 3}, GenerationAdvice(0.5, 0.9, (3,))),
        ({"temperature": 0.5, "do_sample": False}, GenerationAdvice(0.0)),
        ({"temperature": None, "top_p": None, "do_sample": None, "eos_token_id": None}, GenerationAdvice()),
        ({"eos_token_id": [1, 2, 2, 5]}, GenerationAdvice(end_token_ids=(1, 2, 5))),
        ({"example_prompts": ["a", "b"]}, GenerationAdvice(example_prompts=("a", "b"))),
    ],
)
def test_generation_config(value: dict[str, Any], advice: GenerationAdvice, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(value))
    assert read_generation(tmp_path, 97) == advice
    assert read_generation(tmp_path / "nowhere", 97) == GenerationAdvice()


def test_advice_that_is_not_followed_is_told(tmp_path: Path) -> None:
    def notes(**value: Any) -> tuple[str, ...]:
        (tmp_path / "generation_config.json").write_text(json.dumps(value))
        return read_generation(tmp_path, 97).notes

    file = tmp_path / "generation_config.json"
    usual = {
        "top_k": 50,
        "repetition_penalty": 1.0,
        "num_beams": 1,
        "min_p": None,
        "max_new_tokens": 9,
        "pad_token_id": 2,
    }
    assert notes(**usual) == ()
    assert notes(top_k=20) == (f"{file}: top_k is not followed; requests may say how to sample",)
    assert notes(top_k=20, repetition_penalty=1.1)[0].startswith(f"{file}: top_k, repetition_penalty are not followed")


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": "1"}, {"temperature": 3}, {"temperature": True}, {"top_p": 0}, {"top_p": []},
        {"do_sample": "no"}, {"do_sample": 1}, {"eos_token_id": [1, 97]}, {"eos_token_id": "1"},
        {"eos_token_id": [None]}, {"example_prompts": "a"}, {"example_prompts": [1]}, {"example_prompts": [""]},
    ],
)  # fmt: skip
def test_wrong_types_in_generation_config_are_named(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, **change}))
    with pytest.raises(ValueError, match=f"generation_config.json, line 1: {next(iter(change))} must be"):
        read_generation(tmp_path, 97)
