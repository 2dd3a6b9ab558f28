"""Config files of three dialects, read into the fields of ModelConfig.

released       `config.json` of the releases: compress_ratios, num_hash_layers, rope_scaling
inference      `inference/config.json` beside the reference code: dim, n_layers, ...
transformers   what transformers 5 saves: layer_types, compress_rates, mlp_layer_types, rope_parameters

null means that a field is absent, for every field. There is no default layer plan.
"""

from typing import Any

from dsv4.config.dspark import MOST_STAGES, read_dspark
from dsv4.config.quantization import read_quantization
from dsv4.config.ranges import RANGES, field_number, number, shown
from dsv4.config.rope import read_rope

CSA_RATIO = 4
"""Tokens of an entry of a CSA layer (report 2.3.1)."""
ATTENTION_NAMES = {
    "swa": "sliding_attention",
    "csa": "compressed_sparse_attention",
    "hca": "heavily_compressed_attention",
}
# Inference dialect -> ours, where the names differ.
_INFERENCE_NAMES = {
    "dim": "hidden_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_hash_layers": "num_hash_layers",
    "n_mtp_layers": "num_nextn_predict_layers",
    "n_heads": "num_attention_heads",
    "n_activated_experts": "num_experts_per_tok",
    "route_scale": "routed_scaling_factor",
    "rope_head_dim": "qk_rope_head_dim",
    "window_size": "sliding_window",
    "norm_eps": "rms_norm_eps",
}
# Fields whose value V4 fixes: another value would be another model.
_FIXED = {
    "scoring_func": "sqrtsoftplus",
    "score_func": "sqrtsoftplus",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "num_key_value_heads": 1,
    "norm_topk_prob": True,
    "topk_method": "noaux_tc",
}
# Numbers whose meaning depends on other fields.
_READ_APART = ("eos_token_id", "num_nextn_predict_layers")
# Tokens per entry where nothing is said, and the field of older configs.
_USUAL_RATES = {
    ATTENTION_NAMES["csa"]: (CSA_RATIO, "compress_rate_csa"),
    ATTENTION_NAMES["hca"]: (128, "compress_rate_hca"),
}
_OF_TRANSFORMERS = {"layer_types", "mlp_layer_types", "compress_rates", "compress_rate_csa", "compress_rate_hca"}


def read_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields of ModelConfig that are in a parsed config of any dialect. Raises ValueError naming the field."""
    raw = {name: value for name, value in raw.items() if value is not None}
    _check_identity(raw)
    if "dim" in raw and "hidden_size" not in raw:
        return _inference(raw)
    if raw.keys() & _OF_TRANSFORMERS:
        try:
            return _huggingface(_released(raw))
        except ValueError as error:
            if "compress_ratios" in raw:
                raise
            raise ValueError(f"{error} (config in the dialect of transformers, with layer_types)") from None
    return _huggingface(raw)


def _check_identity(raw: dict[str, Any]) -> None:
    """Refuse other models by name, before an error about a missing field hides the reason."""
    kind, names = raw.get("model_type", "deepseek_v4"), raw.get("architectures", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"architectures must be a list of names, got {shown(names)}")
    if kind == "deepseek_v41" or any(name.startswith("DeepseekV41") for name in names):
        raise ValueError("model_type must be 'deepseek_v4': this is a DeepSeek-V4.1 model, another architecture")
    if kind != "deepseek_v4":
        raise ValueError(f"model_type must be 'deepseek_v4' in DeepSeek-V4, got {shown(kind)}")
    if names and not any(name.startswith("DeepseekV4") for name in names):
        raise ValueError(f"architectures must name DeepseekV4ForCausalLM, got {shown(names)}")
    if "vision_config" in raw:
        raise ValueError("vision_config must be absent: models that read images are not supported")
    if "text_config" in raw:
        raise ValueError("text_config must be absent: the fields of a text model lie at the top of its config")
    for name, wanted in _FIXED.items():
        if name in raw and (raw[name] != wanted or isinstance(raw[name], bool) != isinstance(wanted, bool)):
            raise ValueError(f"{name} must be {wanted!r} in DeepSeek-V4, got {shown(raw[name])}")


def _common(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields all dialects share, checked one by one, and the layer plan cut to what belongs to the model."""
    ends = raw.get("eos_token_id")
    values: dict[str, Any] = {
        name: field_number(name, raw[name]) for name in RANGES if name in raw and name not in _READ_APART
    }
    values |= _end_tokens(ends)
    ratios = raw.get("compress_ratios")
    if not isinstance(ratios, list) or not all(type(ratio) is int for ratio in ratios):
        raise ValueError(f"compress_ratios must be a list of integers, one per layer, got {shown(ratios)}")
    values["compress_ratios"] = tuple(ratios)
    values |= read_quantization(raw)
    _settle_prediction(raw, values)
    return values


def _end_tokens(value: Any) -> dict[str, Any]:
    """eos_token_id is a number, or a list of all tokens that end an answer."""
    if value is None:
        return {}
    if not isinstance(value, list):
        return {"eos_token_id": field_number("eos_token_id", value)}
    if not value:
        raise ValueError("eos_token_id must be a token id or a list of some, got []")
    first, *rest = (field_number("eos_token_id", item) for item in value)
    return {"eos_token_id": first, "end_token_ids": tuple(dict.fromkeys(rest))}


def _settle_prediction(raw: dict[str, Any], values: dict[str, Any]) -> None:
    """What comes after the backbone: one prediction block, DSpark's draft stages, or nothing.

    Tools write one of the two fields without the other: the number without the ratio (always 0), or the ratio without
    the number. num_nextn_predict_layers does not count draft stages; each further ratio is one stage.
    """
    ratios, layers = values["compress_ratios"], values.get("num_hidden_layers")
    if layers is None:
        return
    extra = ratios[layers:]
    values["dspark"] = read_dspark(raw, len(extra))
    if "num_nextn_predict_layers" in raw:
        blocks = raw["num_nextn_predict_layers"]
        # beside dspark_* keys it may count the draft stages
        high = MOST_STAGES if values["dspark"] else int(RANGES["num_nextn_predict_layers"][2])
        values["num_nextn_predict_layers"] = number("num_nextn_predict_layers", blocks, int, 0, high)
    if values["dspark"]:
        values["num_nextn_predict_layers"] = 0
        return
    if "num_nextn_predict_layers" not in values:
        values["num_nextn_predict_layers"] = min(1, len(extra))
    blocks = values["num_nextn_predict_layers"]
    if blocks == 0 and not any(extra):
        values["compress_ratios"] = ratios[:layers]
    elif blocks == 1 and len(ratios) == layers:
        values["compress_ratios"] = (*ratios, 0)


def _huggingface(raw: dict[str, Any]) -> dict[str, Any]:
    rope = read_rope(raw)
    values = _common({**raw, **{name: value for name, value in rope.items() if name != "yarn"}})
    values["yarn"] = rope["yarn"]
    return values


def _inference(raw: dict[str, Any]) -> dict[str, Any]:
    renamed = {_INFERENCE_NAMES.get(name, name): value for name, value in raw.items()}
    renamed.setdefault("num_nextn_predict_layers", 1)
    original = int(number("original_seq_len", raw.get("original_seq_len", 0), int, 0, 1 << 31))
    scaling = {"factor": "rope_factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow"}
    missing = [name for name in scaling.values() if name not in raw]
    if original and missing:
        raise ValueError(f"{missing[0]} is missing")
    values = _common(renamed)
    yarn = {ours: number(name, raw[name], float, 0, 1e6) for ours, name in scaling.items() if original}
    if original:
        yarn |= {"type": "yarn", "original_max_position_embeddings": original}
    values["yarn"] = read_rope({"rope_scaling": yarn})["yarn"]
    values["quantized"] = raw.get("dtype") == "fp8"
    return values


def _released(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields of transformers' dialect under the released names. If a config has both, they must agree."""
    out = dict(raw)
    types, hashed = raw.get("layer_types"), raw.get("mlp_layer_types")
    _check_rates(raw)
    if types is not None:
        ratios = [_ratio(i, name, raw) for i, name in enumerate(_names("layer_types", types))]
        given = raw.get("compress_ratios")
        if given is None:
            out["compress_ratios"] = ratios
        elif not isinstance(given, list) or given[: len(ratios)] != ratios:
            raise ValueError(f"layer_types must agree with compress_ratios, got {shown(types)} and {shown(given)}")
    if hashed is not None:
        kinds = _names("mlp_layer_types", hashed)
        count = sum(kind == "hash_moe" for kind in kinds)
        if kinds != ["hash_moe"] * count + ["moe"] * (len(kinds) - count):
            raise ValueError(
                f"mlp_layer_types must be hash_moe in the first layers and moe in the others, got {shown(kinds)}"
            )
        if raw.get("num_hash_layers", count) != count:
            raise ValueError(
                f"mlp_layer_types must agree with num_hash_layers {shown(raw['num_hash_layers'])}, got {count} hash_moe"
            )
        out["num_hash_layers"] = count
    for name, value in (("layer_types", types), ("mlp_layer_types", hashed)):
        layers = raw.get("num_hidden_layers", 0)
        if value is not None and len(value) != layers:
            raise ValueError(f"{name} must have num_hidden_layers {shown(layers)} entries, got {len(value)}")
    return out


def _check_rates(raw: dict[str, Any]) -> None:
    """The two spellings of the rates agree with each other and with compress_ratios, as far as each is there."""
    rates, given = raw.get("compress_rates"), raw.get("compress_ratios")
    for name, (_, older) in _USUAL_RATES.items():
        field = f"compress_rates.{name}"
        rate = rates.get(name) if isinstance(rates, dict) else None
        if rate is not None and older in raw and raw[older] != rate:
            raise ValueError(f"{older} must agree with {field} {shown(rate)}, got {shown(raw[older])}")
        if rate is None and older in raw:
            field, rate = older, raw[older]
        if rate is None or not isinstance(given, list):
            continue
        csa = name == ATTENTION_NAMES["csa"]
        ratios = {ratio for ratio in given if isinstance(ratio, int) and ratio > 0 and (ratio == CSA_RATIO) == csa}
        if ratios and ratios != {rate}:
            raise ValueError(f"{field} must agree with compress_ratios {shown(sorted(ratios))}, got {shown(rate)}")


def _names(field: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{field} must be a list of names, one per layer, got {shown(value)}")
    return value


def _ratio(index: int, name: str, raw: dict[str, Any]) -> int:
    """The tokens per compressed entry of a layer type: from compress_rates, or as transformers and V4 have it."""
    if name == ATTENTION_NAMES["swa"]:
        return 0
    if name not in _USUAL_RATES:
        raise ValueError(
            f"layer_types[{index}] must be one of {', '.join(ATTENTION_NAMES.values())}, got {shown(name)}"
        )
    default, older = _USUAL_RATES[name]
    if older in raw and "compress_rates" not in raw:
        return int(number(older, raw[older], int, 1, 256))
    rates = raw.get("compress_rates", {name: default})
    if not isinstance(rates, dict):
        raise ValueError(f"compress_rates must be an object, got {shown(rates)}")
    if rates.get(name) is None:
        raise ValueError(f"compress_rates.{name} is missing")
    return int(number(f"compress_rates.{name}", rates[name], int, 1, 256))
