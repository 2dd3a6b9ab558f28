"""ModelConfig: what a DeepSeek-V4 model is, read from the released config files, and its per-layer plan.

Two dialects exist: the Hugging Face `config.json` and the `inference/config.json` beside the reference code. Both
give the same ModelConfig. A contradiction is an error that names the field and the allowed range; there is no
default layer plan to fall back to (report 2.3, 4.2.1).
"""

import json
import math
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

CSA_RATIO = 4
HCA_RATIOS = (16, 32, 64, 128, 256)


class AttentionKind(StrEnum):
    """The three attention layers of the report (2.3)."""

    SWA = "swa"  # sliding window only
    CSA = "csa"  # window + indexer's choice of entries compressed 4:1
    HCA = "hca"  # window + every entry compressed 128:1


class Routing(StrEnum):
    """How a MoE layer chooses its experts: by a table over token ids, or by learned scores."""

    HASH = "hash"
    LEARNED = "learned"


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One block of the plan. `ratio` is the number of tokens per compressed entry, 0 for sliding window."""

    index: int
    ratio: int
    routing: Routing

    @property
    def kind(self) -> AttentionKind:
        if self.ratio == 0:
            return AttentionKind.SWA
        return AttentionKind.CSA if self.ratio == CSA_RATIO else AttentionKind.HCA


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN scaling of the rotary table used in layers with a compressor (report 2.3)."""

    factor: float = 16.0
    original_max_position_embeddings: int = 65536
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Architecture of one model. Field names follow the Hugging Face `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_hash_layers: int
    num_nextn_predict_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int
    compress_ratios: tuple[int, ...]  # one per layer, MTP layers last
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    routed_scaling_factor: float
    swiglu_limit: float
    n_shared_experts: int = 1
    rms_norm_eps: float = 1e-6
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    yarn: Yarn | None = Yarn()
    max_position_embeddings: int = 1048576
    bos_token_id: int = 0
    eos_token_id: int = 1
    expert_dtype: str | None = None  # "fp4" | "fp8" | None: as the files say
    quantized: bool = False  # the files hold FP8 linears with block scales
    draft_stages: int = 0  # DSpark stages in place of the MTP block: stored under mtp.*, not loaded

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_ratios(self)
        _check_shapes(self)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The plan of the backbone, bottom to top."""
        return tuple(
            LayerSpec(i, ratio, Routing.HASH if i < self.num_hash_layers else Routing.LEARNED)
            for i, ratio in enumerate(self.compress_ratios[: self.num_hidden_layers])
        )

    @property
    def mtp_layers(self) -> tuple[LayerSpec, ...]:
        """The plan of the multi-token-prediction blocks; their index continues the backbone's."""
        first = self.num_hidden_layers
        return tuple(
            LayerSpec(first + i, self.compress_ratios[first + i], Routing.LEARNED)
            for i in range(self.num_nextn_predict_layers)
        )

    @property
    def compressor_ratios(self) -> tuple[int, ...]:
        """The distinct ratios above 0 that occur, ascending."""
        return tuple(sorted({ratio for ratio in self.compress_ratios if ratio}))

    def with_changes(self, **changes: Any) -> "ModelConfig":
        """A copy with some fields replaced, checked again."""
        return replace(self, **changes)

    @classmethod
    def from_file(cls, path: str | Path) -> "ModelConfig":
        """Read `config.json` (either dialect); `path` is the file or the model's folder."""
        file = Path(path)
        if file.is_dir():
            file = file / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"no config.json at {file}")
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: not valid JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ValueError(f"{file}: expected a JSON object, got {type(raw).__name__}")
        try:
            return cls.from_dict(raw)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "ModelConfig":
        """Read a parsed config of either dialect. Raises ValueError naming the field."""
        return _from_inference(raw) if "dim" in raw and "hidden_size" not in raw else _from_huggingface(raw)

    def to_dict(self) -> dict[str, Any]:
        """The Hugging Face dialect, complete enough for other engines to load."""
        skip = {"yarn", "quantized", "draft_stages", "compress_ratios", "expert_dtype"}
        out: dict[str, Any] = {"architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4"}
        out |= {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skip}
        out |= _HF_CONSTANTS
        stored_layers = self.num_hidden_layers + self.num_nextn_predict_layers  # draft stages are not written
        out["compress_ratios"] = list(self.compress_ratios[:stored_layers])
        if self.yarn:
            out["rope_scaling"] = {"type": "yarn"} | {f.name: getattr(self.yarn, f.name) for f in fields(Yarn)}
        if self.quantized:
            out["quantization_config"] = dict(_QUANTIZATION)
            if self.expert_dtype:
                out["expert_dtype"] = self.expert_dtype
        return out


_HF_CONSTANTS: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "norm_topk_prob": True,
    "num_key_value_heads": 1,
    "scoring_func": "sqrtsoftplus",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
_QUANTIZATION: dict[str, Any] = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "scale_fmt": "ue8m0",
    "weight_block_size": [128, 128],
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
    "tie_word_embeddings": False,
    "num_key_value_heads": 1,
    "norm_topk_prob": True,
    "topk_method": "noaux_tc",
    "model_type": "deepseek_v4",
}
_INTEGERS = {f.name for f in fields(ModelConfig) if f.type is int}
_FLOATS = {f.name for f in fields(ModelConfig) if f.type is float}


def _number(name: str, value: Any, kind: type) -> int | float:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and not whole):
        raise ValueError(f"{name} must be {'an integer' if kind is int else 'a number'}, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return kind(value)


def _common(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields both dialects share, type-checked, still without the layer plan's consistency."""
    for name, wanted in _FIXED.items():
        if name in raw and raw[name] != wanted:
            raise ValueError(f"{name} must be {wanted!r} in DeepSeek-V4, got {raw[name]!r}")
    values: dict[str, Any] = {}
    for name in (*_INTEGERS, *_FLOATS):
        if name in raw and raw[name] is not None:
            values[name] = _number(name, raw[name], int if name in _INTEGERS else float)
    ratios = raw.get("compress_ratios")
    if not isinstance(ratios, list) or not all(isinstance(r, int) and not isinstance(r, bool) for r in ratios):
        raise ValueError(f"compress_ratios must be a list of integers, one per layer, got {ratios!r}")
    values["compress_ratios"] = tuple(ratios)
    values["expert_dtype"] = _expert_dtype(raw.get("expert_dtype"))
    return values


def _expert_dtype(value: Any) -> str | None:
    if value not in (None, "fp4", "fp8", "bf16"):
        raise ValueError(f"expert_dtype must be one of fp4, fp8, bf16, got {value!r}")
    return None if value == "bf16" else value


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {value!r}")
    return value


def _yarn(raw: dict[str, Any]) -> Yarn | None:
    kind = raw.get("type", raw.get("rope_type", "yarn"))
    if kind != "yarn":
        raise ValueError(f"rope_scaling.type must be 'yarn', got {kind!r}")
    values = {f.name: raw[f.name] for f in fields(Yarn) if f.name in raw}
    missing = [f.name for f in fields(Yarn) if f.name not in values]
    if missing:
        raise ValueError(f"rope_scaling.{missing[0]} is missing")
    for name, value in values.items():
        if _number(f"rope_scaling.{name}", value, float) <= 0:
            raise ValueError(f"rope_scaling.{name} must be positive, got {value}")
    return Yarn(**values)


def _construct(values: dict[str, Any]) -> ModelConfig:
    required = [f.name for f in fields(ModelConfig) if f.name not in values and f.name in _REQUIRED]
    if required:
        raise ValueError(f"{required[0]} is missing")
    return ModelConfig(**values)


_REQUIRED = tuple(f.name for f in fields(ModelConfig))[
    : [f.name for f in fields(ModelConfig)].index("n_shared_experts")
]


def _from_huggingface(raw: dict[str, Any]) -> ModelConfig:
    values = _common(raw)
    scaling = raw.get("rope_scaling")
    values["yarn"] = _yarn(_object("rope_scaling", scaling)) if scaling else None
    quantization = raw.get("quantization_config")
    if quantization:
        quantization = _object("quantization_config", quantization)
        for name in ("quant_method", "fmt", "weight_block_size"):
            if quantization.get(name) != _QUANTIZATION[name]:
                raise ValueError(
                    f"quantization_config.{name} must be {_QUANTIZATION[name]!r}, got {quantization.get(name)!r}"
                )
        values["quantized"] = True
        values["expert_dtype"] = values["expert_dtype"] or _expert_dtype(quantization.get("expert_dtype"))
    if "dspark_block_size" in raw:
        values["draft_stages"] = len(values["compress_ratios"]) - int(values.get("num_hidden_layers", 0))
        values["num_nextn_predict_layers"] = 0
    return _construct(values)


def _from_inference(raw: dict[str, Any]) -> ModelConfig:
    renamed = {_INFERENCE_NAMES.get(name, name): value for name, value in raw.items()}
    values = _common(renamed)
    values.setdefault("num_nextn_predict_layers", 1)
    values["quantized"] = raw.get("dtype") == "fp8"
    original = int(_number("original_seq_len", raw.get("original_seq_len", 0), int))
    scaling = {"factor": "rope_factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow"}
    missing = [name for name in scaling.values() if name not in raw]
    if original and missing:
        raise ValueError(f"{missing[0]} is missing")
    numbers = {ours: _number(name, raw[name], float) for ours, name in scaling.items() if original}
    values["yarn"] = _yarn({**numbers, "original_max_position_embeddings": original}) if original else None
    return _construct(values)


def _check_positive(config: ModelConfig) -> None:
    may_be_zero = {
        "num_hash_layers",
        "num_nextn_predict_layers",
        "bos_token_id",
        "eos_token_id",
        "draft_stages",
    }
    for name in (*_INTEGERS, *_FLOATS):
        value = getattr(config, name)
        low = 0 if name in may_be_zero or name == "swiglu_limit" else 1 if name in _INTEGERS else 1e-30
        if not value >= low:
            raise ValueError(f"{name} must be {'at least ' + str(low) if low != 1e-30 else 'positive'}, got {value}")
    if config.num_nextn_predict_layers > 1:
        raise ValueError(f"num_nextn_predict_layers must be 0 or 1, got {config.num_nextn_predict_layers}")
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(config, name) >= config.vocab_size:
            raise ValueError(f"{name} must be below vocab_size {config.vocab_size}, got {getattr(config, name)}")


def _check_ratios(config: ModelConfig) -> None:
    expected = config.num_hidden_layers + (config.num_nextn_predict_layers or config.draft_stages)
    if len(config.compress_ratios) != expected:
        raise ValueError(
            f"compress_ratios must have {expected} entries (num_hidden_layers {config.num_hidden_layers} plus "
            f"the prediction layers), got {len(config.compress_ratios)}"
        )
    for i, ratio in enumerate(config.compress_ratios):
        if ratio not in (0, CSA_RATIO, *HCA_RATIOS):
            raise ValueError(
                f"compress_ratios[{i}] must be 0 (sliding window), {CSA_RATIO} (CSA) or one of "
                f"{', '.join(map(str, HCA_RATIOS))} (HCA), got {ratio}"
            )
        if i >= config.num_hidden_layers and ratio:
            raise ValueError(f"compress_ratios[{i}] belongs to a prediction layer and must be 0, got {ratio}")
    if config.num_hash_layers > config.num_hidden_layers:
        raise ValueError(
            f"num_hash_layers must be at most num_hidden_layers {config.num_hidden_layers}, "
            f"got {config.num_hash_layers}"
        )


def _check_shapes(config: ModelConfig) -> None:
    if config.qk_rope_head_dim > min(config.head_dim, config.index_head_dim) or config.qk_rope_head_dim % 2:
        raise ValueError(
            f"qk_rope_head_dim must be even and at most head_dim {config.head_dim} and index_head_dim "
            f"{config.index_head_dim}, got {config.qk_rope_head_dim}"
        )
    if config.num_attention_heads % config.o_groups:
        raise ValueError(
            f"o_groups must divide num_attention_heads {config.num_attention_heads}, got {config.o_groups}"
        )
    if config.num_experts_per_tok > config.n_routed_experts:
        raise ValueError(
            f"num_experts_per_tok must be in [1, n_routed_experts {config.n_routed_experts}], "
            f"got {config.num_experts_per_tok}"
        )
    if config.n_shared_experts != 1:
        raise ValueError(f"n_shared_experts must be 1 in DeepSeek-V4, got {config.n_shared_experts}")
    if config.index_head_dim & (config.index_head_dim - 1):
        raise ValueError(f"index_head_dim must be a power of two (Hadamard), got {config.index_head_dim}")
