"""A model's configuration as the keys of a GGUF file (architecture `deepseek4` of llama.cpp), both ways.

The keys hold float32: a number is read back as the shortest decimal that has the same float32, so that 1e-06 stays
1e-06. What has no key (dialect of the config, quantisation) follows from the tensors.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv4.checkpoint.format import CheckpointError
from dsv4.checkpoint.gguf.container import GgufFile, MetadataValue, Scalars
from dsv4.config import ModelConfig
from dsv4.config.ranges import shown
from dsv4.config.rope import Yarn

ARCHITECTURE = "deepseek4"
_SQRT_SOFTPLUS = 4
_MAX_FLOAT32 = 3.4e38
_READABLE_RATIOS = (0, 4, 128)  # of llama.cpp and flyweight
# field of ModelConfig -> key below the architecture
_INTEGERS = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "head_dim": "attention.key_length",
    "qk_rope_head_dim": "rope.dimension_count",
    "q_lora_rank": "attention.q_lora_rank",
    "o_groups": "attention.output_group_count",
    "o_lora_rank": "attention.output_lora_rank",
    "sliding_window": "attention.sliding_window",
    "index_n_heads": "attention.indexer.head_count",
    "index_head_dim": "attention.indexer.key_length",
    "index_topk": "attention.indexer.top_k",
    "n_routed_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "n_shared_experts": "expert_shared_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "num_hash_layers": "hash_layer_count",
    "hc_mult": "hyper_connection.count",
    "hc_sinkhorn_iters": "hyper_connection.sinkhorn_iterations",
}
_FLOATS = {
    "routed_scaling_factor": "expert_weights_scale",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "hc_eps": "hyper_connection.epsilon",
    "rope_theta": "rope.freq_base",
    "compress_rope_theta": "attention.compress_rope_freq_base",
}
_CLAMP, _SHARED_CLAMP, _RATIOS = "swiglu_clamp_exp", "swiglu_clamp_shexp", "attention.compress_ratios"
# what V4 has in one form only; a file that says otherwise is another model's
_FIXED = {"attention.head_count_kv": 1, "expert_weights_norm": True}
_NEXTN = "nextn_predict_layers"
_SCALING = "rope.scaling."
_YARN_FLOATS = {"factor": "factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
_YARN_LENGTH = "original_context_length"


def metadata_of(config: ModelConfig) -> dict[str, MetadataValue]:
    """The keys of a model without its prediction block. Raises CheckpointError for one that the readers of such files
    refuse."""
    for i, ratio in enumerate(config.compress_ratios):
        if ratio not in _READABLE_RATIOS:
            text = f"compress_ratios[{i}] must be 0, 4 or 128 in a GGUF file, got {ratio}"
            raise CheckpointError(f"{text}: no program that reads such files has another")
    config = config.without_prediction()
    layers = config.num_hidden_layers
    found: dict[str, MetadataValue] = {}
    found |= {key: _one("I", getattr(config, field)) for field, key in _INTEGERS.items()}
    found |= {key: _one("f", getattr(config, field)) for field, key in _FLOATS.items()}
    found |= {key: Scalars("f", [config.swiglu_limit] * layers) for key in (_CLAMP, _SHARED_CLAMP)}
    found[_RATIOS] = Scalars("i", config.compress_ratios)
    found["attention.value_length"] = _one("I", config.head_dim)
    found["embedding_length_out"] = _one("I", config.hidden_size * config.hc_mult)
    found["expert_gating_func"] = _one("I", _SQRT_SOFTPLUS)
    found |= {key: _one("?" if only is True else "I", only) for key, only in _FIXED.items()}
    if config.yarn is not None:
        found[f"{_SCALING}type"] = "yarn"
        found |= {_SCALING + key: _one("f", getattr(config.yarn, field)) for field, key in _YARN_FLOATS.items()}
        found[_SCALING + _YARN_LENGTH] = _one("I", config.yarn.original_max_position_embeddings)
    return {f"{ARCHITECTURE}.{key}": value for key, value in found.items()}


def _one(letter: str, value: float) -> Scalars:
    return Scalars(letter, [value], array=False)


def config_of(opened: GgufFile) -> ModelConfig:
    """The configuration that a file's keys describe, without prediction block. Raises CheckpointError naming file and
    key."""
    name = opened.metadata.get("general.architecture")
    if name != ARCHITECTURE:
        raise CheckpointError(
            f"{opened.file}: general.architecture must be {ARCHITECTURE!r} (DeepSeek-V4), got {shown(name)}"
        )
    keys = _Keys(opened.file, opened.metadata)
    gating = keys.integer("expert_gating_func")
    if gating != _SQRT_SOFTPLUS:
        raise CheckpointError(
            f"{keys.where('expert_gating_func')} must be {_SQRT_SOFTPLUS} (sqrtsoftplus), got {gating}"
        )
    for key, only in _FIXED.items():
        if keys.has(key) and keys.get(key) != only:
            raise CheckpointError(f"{keys.where(key)} must be {only} in DeepSeek-V4, got {shown(keys.get(key))}")
    values: dict[str, Any] = {field: keys.integer(key) for field, key in _INTEGERS.items() if field != "vocab_size"}
    values |= {field: keys.real(key) for field, key in _FLOATS.items()}
    values["vocab_size"] = _vocab_size(opened, keys)
    layers = values["num_hidden_layers"]
    if keys.has(_NEXTN):
        layers -= keys.integer(_NEXTN)
        values["num_hidden_layers"] = layers
    values["swiglu_limit"] = keys.same_in_all_layers(_CLAMP)
    if keys.has(_SHARED_CLAMP) and keys.same_in_all_layers(_SHARED_CLAMP) != values["swiglu_limit"]:
        raise CheckpointError(f"{keys.where(_SHARED_CLAMP)} must be the same as {_CLAMP}: V4 has one limit")
    values["compress_ratios"] = _ratios(keys, layers)
    values["yarn"] = _yarn(keys)
    for field in ("bos_token_id", "eos_token_id"):
        if (token := opened.metadata.get(f"tokenizer.ggml.{field}")) is not None:
            values[field] = token
    try:
        return ModelConfig(num_nextn_predict_layers=0, **values)
    except ValueError as error:
        raise CheckpointError(f"{opened.file}: {error}") from None


def _vocab_size(opened: GgufFile, keys: "_Keys") -> int:
    """From its key, else from the rows of the embedding: llama.cpp's converter leaves the key out of some files."""
    if keys.has("vocab_size"):
        return keys.integer("vocab_size")
    embedding = opened.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{opened.file}: neither {ARCHITECTURE}.vocab_size nor the tensor 'token_embd.weight'")
    return embedding.shape[0]


def _ratios(keys: "_Keys", layers: int) -> tuple[int, ...]:
    ratios = keys.get(_RATIOS)
    if not isinstance(ratios, list) or len(ratios) < layers or not all(type(ratio) is int for ratio in ratios):
        raise CheckpointError(
            f"{keys.where(_RATIOS)} must be a list of at least {layers} integers, got {shown(ratios)}"
        )
    return tuple(ratios[:layers])


def _yarn(keys: "_Keys") -> Yarn | None:
    kind = keys.get(f"{_SCALING}type") if keys.has(f"{_SCALING}type") else "none"
    if kind == "none":
        return None
    if kind != "yarn":
        raise CheckpointError(f"{keys.where(f'{_SCALING}type')} must be yarn or none, got {shown(kind)}")
    found = {field: keys.real(_SCALING + key) for field, key in _YARN_FLOATS.items() if keys.has(_SCALING + key)}
    length = keys.integer(_SCALING + _YARN_LENGTH)
    try:
        return Yarn(original_max_position_embeddings=length, **found)
    except ValueError as error:
        raise CheckpointError(f"{keys.file}: {error}") from None


class _Keys:
    """The keys of the architecture, each read with a check of its type."""

    def __init__(self, file: Path, metadata: Mapping[str, Any]) -> None:
        self.file = file
        self._metadata = metadata

    def where(self, key: str) -> str:
        return f"{self.file}: {ARCHITECTURE}.{key}"

    def has(self, key: str) -> bool:
        return f"{ARCHITECTURE}.{key}" in self._metadata

    def get(self, key: str) -> Any:
        if not self.has(key):
            raise CheckpointError(f"{self.where(key)} is missing")
        return self._metadata[f"{ARCHITECTURE}.{key}"]

    def integer(self, key: str) -> int:
        value = self.get(key)
        items = value if isinstance(value, list) and value else [value]
        if any(type(item) is not int or item != items[0] for item in items):
            raise CheckpointError(f"{self.where(key)} must be one integer, got {shown(value)}")
        return items[0]

    def real(self, key: str) -> float:
        return self._shortest(key, self.get(key))

    def same_in_all_layers(self, key: str) -> float:
        """One number, or a list that repeats it."""
        value = self.get(key)
        items = value if isinstance(value, list) and value else [value]
        numbers = {self._shortest(key, item) for item in items}
        if len(numbers) > 1:
            raise CheckpointError(f"{self.where(key)} must be the same in all layers, got {shown(value)}")
        return numbers.pop()

    def _shortest(self, key: str, value: Any) -> float:
        if type(value) not in (int, float):
            raise CheckpointError(f"{self.where(key)} must be a number, got {shown(value)}")
        return shortest_decimal(float(value))


def shortest_decimal(value: float) -> float:
    """The number with the fewest digits that is the same float32; `value` itself where no float32 is near."""
    if not abs(value) < _MAX_FLOAT32:
        return value
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value
