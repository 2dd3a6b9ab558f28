"""A run as data: one frozen object read from a TOML file, checked before anything is loaded.

recipe = Recipe.from_file("recipes/text/small.toml", ["lr.peak=1e-3", "seed=2"])
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dsv4.config import CSA_RATIO, ModelConfig
from dsv4.distributed.mesh import Scale
from dsv4.training.anticipate import RecoverySettings
from dsv4.training.loss import LossWeights
from dsv4.training.schedule import BatchRamp, LearningRate, Phase, Schedule, Stage

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """Where documents come from. weight: share of the tokens, relative to the other sources.

    kind "text": files under `path` with one of `suffixes`, a document each, cut at blank lines where they are longer
    than `characters`. "jsonl": one document a line of `path`, under `key`. "generator": `path` names a Python function
    "module:name" that makes document number i from a random.Random and `options`. lengths: only in stages of these
    sequence lengths (default: in all).
    """

    name: str
    kind: Literal["text", "jsonl", "generator"]
    path: str
    weight: float = 1.0
    suffixes: tuple[str, ...] = (".txt", ".md")
    characters: int = 20_000
    key: str = "text"
    options: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    __pydantic_config__ = _STRICT

    def used_at(self, length: int) -> bool:
        return not self.lengths or length in self.lengths

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"source {self.name}: weight must be positive, got {self.weight}")
        if self.characters < 1:
            raise ValueError(f"source {self.name}: characters must be at least 1, got {self.characters}")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """tokenizer: a folder with tokenizer.json, or vocabulary: train one of that many tokens on the sources.

    fim: share of text documents told as prefix, suffix, middle (PSM). pool: sequences packed together; more packs
    tighter. micro: tokens of one forward pass, at least a sequence; memory grows with it.
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
class OptimizerSettings:
    """kind: muon (report 2.4: AdamW for what is no matrix) or adamw for everything, as a control."""

    kind: Literal["muon", "adamw"] = "muon"
    momentum: float = 0.95
    decay: float = 0.1
    clip: float = 1.0
    balance_speed: float = 0.001
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        for name in ("momentum", "decay", "clip", "balance_speed"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the run costs and tells. save_seconds: between checkpoints. recall_every, recall_queries: steps between
    measurements of the indexers, and how many queries each. recompute: keep only block inputs for the backward pass."""

    numerics: Literal["fp32", "bf16"] = "fp32"
    recompute: bool = False
    save_seconds: float = 300.0
    recall_every: int = 20
    recall_queries: int = 8
    recovery: bool = True
    anticipation_delay: int = 4
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.recall_every < 1 or self.anticipation_delay < 1:
            raise ValueError("run.recall_every and run.anticipation_delay must be at least 1")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole run. `model` holds the fields of ModelConfig; vocab_size comes from the tokenizer."""

    name: str
    model: dict[str, Any]
    data: DataSettings
    stages: tuple[Stage, ...]
    lr: LearningRate
    batch: BatchRamp
    seed: int = 0
    mtp_weights: tuple[float, float] = (0.3, 0.1)
    qat_from: int | None = None
    loss: LossWeights = field(default_factory=LossWeights)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    run: RunSettings = field(default_factory=RunSettings)
    scale: Scale = field(default_factory=Scale)  # ranks along each axis; a run may go on with another scale
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if "vocab_size" in self.model:
            raise ValueError("model.vocab_size comes from the tokenizer and may not be given")
        self.config(1024)  # what is wrong with the model is told now
        if CSA_RATIO not in self.config(1024).compress_ratios and any(s.phase is Phase.WARMUP for s in self.stages):
            raise ValueError(f"stages: phase warmup trains indexers; model.compress_ratios has no {CSA_RATIO} (CSA)")
        longest = max(stage.length for stage in self.schedule.stages)
        positions = self.config(1024).max_position_embeddings
        if longest > positions:
            raise ValueError(f"stages: length {longest} is more than model.max_position_embeddings {positions}")

        known = {stage.length for stage in self.stages}
        for source in self.data.sources:
            if not known.issuperset(source.lengths):
                lengths = ", ".join(map(str, sorted(known)))
                raise ValueError(f"source {source.name}: lengths must be among those of stages, {lengths}")
        for length in known:
            if not any(source.used_at(length) for source in self.data.sources):
                raise ValueError(f"data.sources: none has the stage's length {length} among its lengths")
        experts = self.config(1024).n_routed_experts
        if experts % self.scale.expert:
            raise ValueError(f"scale.expert must divide model.n_routed_experts {experts}, got {self.scale.expert}")

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.stages, self.lr, self.batch, self.mtp_weights, self.qat_from)

    def config(self, vocabulary: int) -> ModelConfig:
        """The model, for a tokenizer of `vocabulary` tokens. Raises ValueError naming a wrong field."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.model.items()}
        try:
            return ModelConfig(vocab_size=vocabulary, **values)
        except TypeError as error:
            raise ValueError(f"model: {str(error).removeprefix('ModelConfig.__init__() ')}") from None

    @classmethod
    def from_file(cls, file: str | Path, changes: Iterable[str] = ()) -> Self:
        """Read a TOML file; `changes` are "dotted.key=value" with TOML values. Raises ValueError naming the field."""
        path = Path(file)
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: {error}") from None
        for change in changes:
            _change(raw, change)
        try:
            return cls.from_dict(raw)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        try:
            return TypeAdapter(cls).validate_python(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{where}: {message}" if where else message) from None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: what a run's folder keeps."""
        return TypeAdapter(Recipe).dump_python(self, mode="json")


def _change(raw: dict[str, Any], change: str) -> None:
    """Set one dotted key. A value that is no TOML is taken for a string."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set needs key=value, got {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    place: Any = raw
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise ValueError(f"--set {key}: {parent} is no table")
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
