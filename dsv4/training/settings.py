"""The tables of a recipe as frozen dataclasses that check their values. Nothing here loads torch or pydantic, so losses
and optimisers work without them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, get_args

from dsv4.config.device import check_device

Kind = Literal["muon", "adamw"]
Products = Literal["fp32", "int16", "bf16"]
AXES = ("data", "fsdp", "context", "expert")
PLAIN = "letters, digits, spaces and . _ + -, and begin with a letter or digit"
_STRICT = {"extra": "forbid"}  # pydantic's ConfigDict
# fields of ModelConfig that a recipe may not set, and what sets them
FROM_ELSEWHERE = {
    "vocab_size": "the tokenizer",
    "bos_token_id": "the tokenizer",
    "eos_token_id": "the tokenizer",
    "end_token_ids": "the tokenizer",
    "quantized": "the layout of the export (--export)",
    "expert_dtype": "the layout of the export (--export)",
    "dspark": "the [draft] table",
}


def is_plain(name: str) -> bool:
    """Whether a run or a source may have this name: they give folders their names."""
    return re.fullmatch(r"\w[\w .+-]*", name) is not None


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """Where documents come from. weight: share of the tokens, relative to the other sources.

    kind "text": files under `path` with one of `suffixes`, a document each, cut at blank lines where they are longer
    than `characters`. "jsonl": one document a line of `path` (a file, or the .jsonl files of a folder), under `key`.
    "messages": one conversation a line, of which the answers are learned (docs/finetune.md); `longer`: one that is
    longer than the stage's sequences is left out ("skip"), or its beginning is learned ("cut"). Files may be gzipped,
    in UTF-8, or in UTF-16 or 32 with a byte order mark. invalid: "refuse" what is no valid text by file and line, or
    "replace" it by U+FFFD. "generator": `path` names a Python function "module:name" that makes document number i from
    a random.Random and `options`. lengths: only in stages of these sequence lengths (default: in all).
    """

    name: str
    kind: Literal["text", "jsonl", "messages", "generator"]
    path: str
    weight: float = 1.0
    suffixes: tuple[str, ...] = (".txt", ".md")
    characters: int = 20_000
    key: str = "text"
    invalid: Literal["refuse", "replace"] = "refuse"
    longer: Literal["skip", "cut"] = "skip"
    options: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    __pydantic_config__ = _STRICT

    def used_at(self, length: int) -> bool:
        return not self.lengths or length in self.lengths

    def __post_init__(self) -> None:
        if not is_plain(self.name):
            raise ValueError(f"data.sources: name must be {PLAIN}, got {self.name!r}")
        if not self.weight > 0:
            raise ValueError(f"source {self.name}: weight must be positive, got {self.weight}")
        if self.characters < 1:
            raise ValueError(f"source {self.name}: characters must be at least 1, got {self.characters}")
        for suffix in self.suffixes:
            if not suffix.startswith("."):
                raise ValueError(f"source {self.name}: suffixes must begin with a dot, got {suffix!r}")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """tokenizer: a folder with tokenizer.json, or vocabulary: train one of that many tokens on the sources.

    fim: share of text documents reordered as prefix, suffix, middle (PSM). pool: sequences packed together; a
    larger pool leaves fewer gaps. micro: tokens of one forward pass, at least a sequence; memory grows with it.
    """

    sources: tuple[SourceSettings, ...]
    tokenizer: str | None = None
    vocabulary: int | None = None
    fim: float = 0.0
    pool: int = 32
    micro: int = 2048
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("data.sources must not be empty")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"data.sources must have different names, got {', '.join(names)}")
        if (self.tokenizer is None) == (self.vocabulary is None):
            raise ValueError("data needs either tokenizer (a folder) or vocabulary (a size)")
        if not 0 <= self.fim <= 1:
            raise ValueError(f"data.fim must be in [0, 1], got {self.fim}")
        if self.pool < 1 or self.micro < 1:
            raise ValueError(f"data.pool and data.micro must be at least 1, got {self.pool} and {self.micro}")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Low-rank adapters in place of training the weights: y = W x + alpha / rank * B A x. targets: the last parts
    of the released names of linears, * for any part (`attn.wo_a`, `shared_experts.*`, `experts.*.w1`).

    With run.numerics "bf16" the weights stay as they are stored, FP8 and FP4 included; "fp32" multiplies them out."""

    rank: int = 16
    alpha: float = 32.0
    # not wo_a: PEFT cannot run an adapter on transformers' grouped linear
    targets: tuple[str, ...] = ("attn.wq_a", "attn.wq_b", "attn.wkv", "attn.wo_b")
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha must be positive, got {self.alpha}")
        if not self.targets:
            raise ValueError("lora.targets must not be empty")


@dataclass(frozen=True, slots=True)
class DraftSettings:
    """A draft head (DSpark) to train on the model that `init` names, which stays as it is.

    stages, block_size, markov_rank, target_layer_ids, noise_token_id: as in config.json; the last layers and the last
    token where nothing is said. An `init` that has a head already is trained further, and these must be left out.
    anchors: blocks for each token of the batch. decay: places of a block after which its rows count 1/e. entropy,
    distance, confidence: weights of the three losses.
    """

    stages: int | None = None
    block_size: int | None = None
    markov_rank: int | None = None
    target_layer_ids: tuple[int, ...] | None = None
    noise_token_id: int | None = None
    anchors: float = 0.125
    decay: float = 4.0
    entropy: float = 0.1
    distance: float = 0.9
    confidence: float = 1.0
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if not 0 < self.anchors <= 1:
            raise ValueError(f"draft.anchors must be in (0, 1], got {self.anchors}")
        if not self.decay > 0:
            raise ValueError(f"draft.decay must be positive, got {self.decay}")
        for name in ("entropy", "distance", "confidence"):
            if getattr(self, name) < 0:
                raise ValueError(f"draft.{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """kind: muon (report 2.4: AdamW for what is no matrix) or adamw for everything, as a control. products: what Muon's
    Newton-Schulz multiplies in; int16 takes 0.5 to 0.7 of the time of fp32 on x86-64 (AVX2, AVX-512), and its error is
    at most about that of the report's bf16."""

    kind: Kind = "muon"
    products: Products = "int16"
    momentum: float = 0.95
    decay: float = 0.1
    clip: float = 1.0
    balance_speed: float = 0.001
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        for name, known in (("kind", Kind), ("products", Products)):
            if getattr(self, name) not in get_args(known):
                allowed = ", ".join(get_args(known))
                raise ValueError(f"optimizer.{name} must be one of {allowed}, got {getattr(self, name)!r:.80}")
        for name in ("momentum", "decay", "clip", "balance_speed"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} must be at least 0, got {getattr(self, name)}")
        if self.momentum >= 1:
            raise ValueError(f"optimizer.momentum must be below 1, got {self.momentum}")


def of_any_version(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The optimizer's fields in the state of a run, with those that an older version had not: before there were other
    products, all were fp32."""
    return {"products": "fp32", **optimizer}


def acting(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an `OptimizerSettings` that change its steps: AdamW has no Newton-Schulz."""
    return {name: value for name, value in optimizer.items() if name != "products" or optimizer["kind"] == "muon"}


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Cost and reports of a run. save_seconds: between checkpoints. recall_every, recall_queries: steps between
    measurements of the indexers, and how many queries each. recompute: keep only block inputs for the backward pass.
    device: cpu, cuda, cuda:N or auto (docs/training.md); a run may go on on another."""

    numerics: Literal["fp32", "bf16"] = "fp32"
    device: str = "cpu"
    recompute: bool = False
    save_seconds: float = 300.0
    recall_every: int = 20
    recall_queries: int = 8
    recovery: bool = True
    anticipation_delay: int = 4
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        check_device(self.device, "run.device")
        if self.recall_every < 1 or self.anticipation_delay < 1:
            raise ValueError("run.recall_every and run.anticipation_delay must be at least 1")
        if self.recall_queries < 0 or self.save_seconds < 0:
            raise ValueError("run.recall_queries and run.save_seconds must be at least 0")


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of the losses; that of the next token is 1. indexer: Muon and AdamW ignore its scale; it matters only to
    gradient clipping."""

    mtp: float = 0.3
    balance: float = 1e-4
    indexer: float = 1.0


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """snapshot_every, snapshots: steps between copies of the state in memory, and how many copies are kept. margin: how
    many steps before a spike a snapshot must lie to be trusted. hold: steps of Anticipatory Routing after a spike.
    attempts: spikes of the loss, or values that are not finite, without `hold` calm steps between, before the run ends
    with an error. Finite gradient norms do not count."""

    snapshot_every: int = 16
    snapshots: int = 2
    margin: int = 4
    hold: int = 64
    attempts: int = 3

    def __post_init__(self) -> None:
        for name in ("snapshot_every", "snapshots", "hold", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.margin < 0:
            raise ValueError(f"margin must be at least 0, got {self.margin}")


@dataclass(frozen=True, slots=True)
class Scale:
    """Number of ranks along each axis; their product is the number of processes. timeout: seconds after which a rank
    that does not answer is given up. Raises ValueError naming a field out of range."""

    data: int = 1
    fsdp: int = 1
    context: int = 1
    expert: int = 1
    timeout: float = 600.0
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        for name in AXES:
            if getattr(self, name) < 1:
                raise ValueError(f"scale.{name} must be at least 1, got {getattr(self, name)}")
        if not self.timeout > 0:
            raise ValueError(f"scale.timeout must be positive, got {self.timeout}")

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in AXES)

    @property
    def world(self) -> int:
        return prod(self.sizes)

    def check(self, world: int) -> None:
        """Raise ValueError unless `world` processes are what the axes multiply to."""
        if self.world != world:
            axes = " x ".join(f"{name} {size}" for name, size in zip(AXES, self.sizes, strict=True))
            raise ValueError(f"scale: {axes} needs {self.world} processes, but {world} were started")
