"""ModelConfig: what a DeepSeek-V4 model is, and its per-layer plan (report 2.3, 4.2.1).

`dialects` beside it reads the config files; all give the same ModelConfig. A contradiction is an error that names the
field and the allowed range.
"""

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from dsv4.config.dialects import ATTENTION_NAMES, CSA_RATIO, read_fields
from dsv4.config.dspark import DSpark
from dsv4.config.json_file import line_of_field, parse_object, read_bounded
from dsv4.config.quantization import QUANTIZATION
from dsv4.config.ranges import MOST_EXPERTS, RANGES, field_number
from dsv4.config.rope import Yarn

HCA_RATIOS = (16, 32, 64, 128, 256)
"""Tokens of an entry that an HCA layer may have; the released models have 128."""


class AttentionKind(StrEnum):
    """The three attention layers of the report (2.3)."""

    SWA = "swa"  # sliding window only
    CSA = "csa"  # window + indexer's choice of entries compressed 4:1
    HCA = "hca"  # window + every entry compressed 128:1


class Routing(StrEnum):
    """How a MoE layer chooses its experts: by a table over token ids, or by learned scores."""

    HASH = "hash"
    LEARNED = "learned"


def overlaps(ratio: int) -> bool:
    """Whether an entry of this compression ratio also reads the block before its own (report eqs 9-12: CSA does)."""
    return ratio == CSA_RATIO


def tail_length(ratio: int, tokens: int) -> int:
    """How many of the last `tokens` tokens a compressor still needs: those of the open block, and with overlap those of
    the last closed block too."""
    closed = tokens // ratio
    if overlaps(ratio):
        closed = max(0, closed - 1)
    return tokens - closed * ratio


def tail_rows(ratio: int, taken_back: int = 1) -> int:
    """Rows that hold a compressor's longest tail and further ones, so that the last `taken_back` tokens can be taken
    back."""
    return (2 * ratio if overlaps(ratio) else ratio) - 1 + taken_back


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One block of the plan. `ratio` is the number of tokens per compressed entry, 0 for sliding window."""

    index: int
    ratio: int
    routing: Routing

    @property
    def kind(self) -> AttentionKind:
        """Follows from the ratio."""
        if self.ratio == 0:
            return AttentionKind.SWA
        return AttentionKind.CSA if self.ratio == CSA_RATIO else AttentionKind.HCA

    @property
    def overlap(self) -> bool:
        """Whether its entries also read the block before their own."""
        return overlaps(self.ratio)

    def width(self, dim: int) -> int:
        """Columns of a compressor's projection to entries of `dim`: with overlap one half for this block, one for the
        next."""
        return 2 * dim if self.overlap else dim


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
    yarn: Yarn | None = Yarn()  # noqa: RUF009 (frozen)
    max_position_embeddings: int = 1048576
    bos_token_id: int = 0
    eos_token_id: int = 1
    end_token_ids: tuple[int, ...] = ()  # further tokens that end an answer
    expert_dtype: str | None = None  # "fp4" | "fp8" | None: as the files say
    quantized: bool = False  # the files hold FP8 linears with block scales
    dspark: DSpark | None = None  # a draft head in place of the MTP block, stored under mtp.* too

    def __post_init__(self) -> None:
        _check_numbers(self)
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
    def draft_layers(self) -> tuple[LayerSpec, ...]:
        """The plan of the draft stages (DSpark); their index continues the backbone's."""
        first = self.num_hidden_layers
        return tuple(LayerSpec(first + i, 0, Routing.LEARNED) for i in range(self.draft_stages))

    @property
    def draft_stages(self) -> int:
        """How many draft stages there are; 0 without a draft head."""
        return self.dspark.stages if self.dspark else 0

    @property
    def predicts(self) -> bool:
        """Whether parameters under `mtp.*` belong to the model: a prediction block or a draft head."""
        return bool(self.num_nextn_predict_layers or self.dspark)

    @property
    def taken_back(self) -> int:
        """The most tokens of a step that the model's own drafts let take back: caches have room so that these overwrite
        nothing that is still needed (`cache.spec.CacheSpec.taken_back`)."""
        return self.dspark.block_size if self.dspark else 1

    @property
    def draft_head(self) -> DSpark:
        """The sizes of the draft head. Raises ValueError for a model without one."""
        if self.dspark is None:
            raise ValueError("the model has no draft head (there are no dspark_* keys)")
        return self.dspark

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Every token that ends an answer, eos_token_id first."""
        return (self.eos_token_id, *(token for token in self.end_token_ids if token != self.eos_token_id))

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
        if not file.exists():
            raise FileNotFoundError(f"no config.json at {file}")
        data = read_bounded(file)
        raw = parse_object(str(file), data)
        try:
            return cls.from_dict(raw)
        except ValueError as error:
            line = line_of_field(data.decode("utf-8-sig"), str(error))
            raise ValueError(f"{file}{f', line {line}' if line else ''}: {error}") from None

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "ModelConfig":
        """Read a parsed config of any dialect (see `dialects`). Raises ValueError naming the field."""
        values = read_fields(raw)
        missing = [name for name in _REQUIRED if name not in values]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        return cls(**values)

    def without_prediction(self) -> "ModelConfig":
        """The same model without its prediction block or draft stages."""
        return self.with_changes(
            num_nextn_predict_layers=0, dspark=None, compress_ratios=self.compress_ratios[: self.num_hidden_layers]
        )

    def to_dict(self) -> dict[str, Any]:
        """The Hugging Face dialect, complete enough for other engines to load: transformers reads `layer_types` and
        `compress_rates`, everything else `compress_ratios`."""
        skip = {"yarn", "quantized", "dspark", "compress_ratios", "expert_dtype", "end_token_ids"}
        out: dict[str, Any] = {"architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4"}
        out |= {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skip}
        if len(self.end_tokens) > 1:
            out["eos_token_id"] = list(self.end_tokens)
        out |= _HF_CONSTANTS
        out["compress_ratios"] = list(self.compress_ratios)
        if self.dspark:
            out |= {"num_nextn_predict_layers": 1} | self.dspark.to_dict()  # 1 is what releases with three stages say
        out |= self._transformers_plan()
        if self.yarn:
            out["rope_scaling"] = {"type": "yarn"} | {f.name: getattr(self.yarn, f.name) for f in fields(Yarn)}
        if self.quantized:
            out["quantization_config"] = dict(QUANTIZATION)
            if self.expert_dtype:
                out["expert_dtype"] = self.expert_dtype
        return out

    def _transformers_plan(self) -> dict[str, Any]:
        """layer_types and compress_rates, unless the plan has two HCA ratios: transformers has one for all layers."""
        rates = {(spec.kind, spec.ratio) for spec in self.layers if spec.ratio}
        if len(rates) > len({kind for kind, _ in rates}):
            return {}
        return {
            "layer_types": [ATTENTION_NAMES[spec.kind] for spec in self.layers],
            "compress_rates": {ATTENTION_NAMES[kind]: ratio for kind, ratio in sorted(rates)},
        }


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
_NAMES = [f.name for f in fields(ModelConfig)]
_REQUIRED = tuple(_NAMES[: _NAMES.index("n_shared_experts")])


def _check_numbers(config: ModelConfig) -> None:
    for name in RANGES:
        field_number(name, getattr(config, name))
    if config.dspark:
        if config.num_nextn_predict_layers:
            raise ValueError("num_nextn_predict_layers must be 0 beside a draft head (dspark)")
        config.dspark.check(config.num_hidden_layers, config.vocab_size)
    for token in (config.bos_token_id, *config.end_tokens):
        if token >= config.vocab_size:
            name = "bos_token_id" if token == config.bos_token_id else "eos_token_id"
            raise ValueError(f"{name} must be below vocab_size {config.vocab_size}, got {token}")
    experts = config.n_routed_experts * config.num_hidden_layers
    if experts > MOST_EXPERTS:
        raise ValueError(
            f"n_routed_experts must be at most {MOST_EXPERTS // config.num_hidden_layers:,} in "
            f"{config.num_hidden_layers} layers ({MOST_EXPERTS:,} in all), got {config.n_routed_experts}"
        )


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
