"""A training run as one frozen object, read from a TOML file and checked before anything is loaded.

recipe = Recipe.from_file("recipes/text/small.toml", ["lr.peak=1e-3", "seed=2"])
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, TypeAdapter

from dsv4.config import CSA_RATIO, ModelConfig
from dsv4.training.recipe_fields import check_fields, read_recipe, strictly
from dsv4.training.schedule import BatchRamp, LearningRate, Phase, Schedule, Stage
from dsv4.training.settings import (
    FROM_ELSEWHERE,
    PLAIN,
    DataSettings,
    DraftSettings,
    LoraSettings,
    LossWeights,
    OptimizerSettings,
    RecoverySettings,
    RunSettings,
    Scale,
    SourceSettings,
    is_plain,
)

__all__ = ["Recipe", "SourceSettings"]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole run. `model` holds the fields of ModelConfig; vocab_size comes from the tokenizer.

    init: a checkpoint folder whose weights the run starts from, and lora: adapters over them; `dsv4 sft` reads both.
    draft: train a draft head for the model of `init` and nothing else."""

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
    init: str | None = None
    lora: LoraSettings | None = None
    draft: DraftSettings | None = None
    scale: Scale = field(default_factory=Scale)  # ranks along each axis; a run may go on with another scale
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if not is_plain(self.name):
            raise ValueError(f"name must be {PLAIN}, got {self.name!r}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63), got {self.seed}")
        for name in ("mtp", "balance", "indexer"):
            if getattr(self.loss, name) < 0:
                raise ValueError(f"loss.{name} must be at least 0, got {getattr(self.loss, name)}")
        for name in FROM_ELSEWHERE:
            if name in self.model:
                raise ValueError(f"model.{name} comes from {FROM_ELSEWHERE[name]} and may not be given")
        if self.lora is not None:
            self._check_lora()
        if self.draft is not None and self.lora is not None:
            raise ValueError("draft: not together with lora; only the draft head is trained")
        self._check_lengths()
        experts = self.config(1024).n_routed_experts
        if experts % self.scale.expert:
            raise ValueError(f"scale.expert must divide model.n_routed_experts {experts}, got {self.scale.expert}")

    def _check_lora(self) -> None:
        """Check adapters against the other fields: the weights under them do not change."""
        if self.init is None:
            raise ValueError("lora needs init: the folder whose weights the adapters lie on")
        if self.qat_from is not None:
            raise ValueError(
                "qat_from: the weights under lora are not changed, so they cannot be trained to be quantised"
            )
        if self.optimizer.balance_speed:
            raise ValueError(f"optimizer.balance_speed must be 0 with lora, got {self.optimizer.balance_speed}")

    def _check_lengths(self) -> None:
        """Check the stages against the model, the batch and the sources."""
        config = self.config(1024)  # what is wrong with the model is told now
        if CSA_RATIO not in config.compress_ratios and any(s.phase is Phase.WARMUP for s in self.stages):
            raise ValueError(f"stages: phase warmup trains indexers; model.compress_ratios has no {CSA_RATIO} (CSA)")
        longest = max(stage.length for stage in self.schedule.stages)
        if longest > config.max_position_embeddings:
            limit = f"model.max_position_embeddings {config.max_position_embeddings}"
            raise ValueError(f"stages: length {longest} is more than {limit}")
        if self.batch.full < longest:
            raise ValueError(f"batch.full must be at least the longest stages.length {longest}, got {self.batch.full}")
        if config.yarn is None and any(stage.yarn for stage in self.stages):
            raise ValueError("stages: yarn needs model.yarn")
        known = {stage.length for stage in self.stages}
        for source in self.data.sources:
            if not known.issuperset(source.lengths):
                lengths = ", ".join(map(str, sorted(known)))
                raise ValueError(f"source {source.name}: lengths must be among those of stages, {lengths}")
        for length in known:
            if not any(source.used_at(length) for source in self.data.sources):
                raise ValueError(f"data.sources: none has the stage's length {length} among its lengths")

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.stages, self.lr, self.batch, self.mtp_weights, self.qat_from)

    def config(self, vocabulary: int) -> ModelConfig:
        """The model, for a tokenizer of `vocabulary` tokens. Raises ValueError naming a wrong field."""
        check_fields(ModelConfig, self.model, "model")
        if self.draft is None:
            return strictly(ModelConfig, {"vocab_size": vocabulary, **self.model}, "model")
        from dsv4.training.draft_fields import with_head  # it needs torch, and recipes are read without

        # the model may have more rows than its tokenizer has tokens, and the noise token may be one of them
        vocabulary = max(vocabulary, (self.draft.noise_token_id or 0) + 1)
        return with_head(strictly(ModelConfig, {"vocab_size": vocabulary, **self.model}, "model"), self.draft)

    @classmethod
    def from_file(cls, file: str | Path, changes: Iterable[str] = (), folder_of: Callable[[str], str] = str) -> Self:
        """Read a TOML file; `changes` are "dotted.key=value" with TOML values. folder_of: the path of the model that
        `init` names. Raises ValueError naming the field."""

        def make(raw: dict[str, Any]) -> Self:
            init = raw.get("init")
            return cls.from_dict({**raw, "init": folder_of(init)} if isinstance(init, str) else raw)

        return read_recipe(make, file, changes, _known_recipes)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        if raw.get("draft") is not None:  # a state names every field
            from dsv4.training.draft_fields import complete

            raw = complete(raw)
        check_fields(cls, raw)
        return strictly(cls, raw)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values, which the run's folder keeps."""
        return TypeAdapter(Recipe).dump_python(self, mode="json")


def _known_recipes() -> str:
    """The recipes of the checkout, for a message. Deeper folders hold data of generators."""
    folder = Path(__file__).parents[2] / "recipes"
    found = ", ".join(str(file.relative_to(folder.parent)) for file in sorted(folder.glob("*/*.toml")))
    return f"; there are {found}" if found else ""
