"""A run that learns from rollouts as data: one frozen object read from a TOML file, checked before anything is loaded.
No torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ConfigDict, TypeAdapter

from dsv4.config.device import check_device
from dsv4.posttraining.settings import (
    EffortSettings,
    KlSettings,
    PolicySettings,
    RateSettings,
    SelectionSettings,
    asked_again,
)
from dsv4.posttraining.types import Effort, Prompt
from dsv4.training.recipe_fields import check_fields, first_difference, read_recipe, strictly
from dsv4.training.settings import PLAIN, OptimizerSettings, acting, is_plain, of_any_version

if TYPE_CHECKING:
    from dsv4.encoding import Tokenizer

_STRICT = ConfigDict(extra="forbid")
NUMERICS = ("fp32", "bf16", "release")


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """Where prompts come from. path: a JSONL file of conversations (docs/posttraining.md), or "module:function" that
    makes one prompt from a random.Random, the tokenizer and `options`."""

    path: str
    options: dict[str, Any] = field(default_factory=dict)
    __pydantic_config__ = _STRICT

    @property
    def generated(self) -> bool:
        """Whether a function makes them."""
        return ":" in self.path and not self.path.endswith(".jsonl")


@dataclass(frozen=True, slots=True)
class EnvironmentSettings:
    """What answers and judges. path: "module:function" that makes environments by domain from the tokenizer and
    `options`; without one, single turns judged by the verifiers that prompts name."""

    path: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How rollouts are made. prompts: of a step; group: rollouts of each. concurrent: how many run at once. numerics:
    what the engine computes in. replay: the learner repeats the engine's choices of experts, entries and kept ids;
    truncated sampling (top_p, top_k, min_p) needs it. Recording them costs speed, so by default it is on only where the
    choices could differ: after truncation, and where engine and learner have other numerics. asynchronous: the next
    step's rollouts are made while this one's are learned, with weights one step behind. context: longest prompt and
    answer together, tool results included. Temperature is 1: learning assumes it."""

    prompts: int = 32
    group: int = 16
    concurrent: int = 64
    numerics: Literal["fp32", "bf16", "release"] = "fp32"
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    replay: bool | None = None
    asynchronous: bool = False
    context: int = 4096
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        for name, least in (("prompts", 1), ("group", 1), ("concurrent", 1), ("context", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"rollouts.{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def truncates(self) -> bool:
        """Whether some tokens cannot be chosen."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True, slots=True)
class HeldOutSettings:
    """Prompts that are not learned, tried now and then. prompts: how many, the same each time. every: steps between two
    trials; 0 = never. samples: rollouts of each; one is taken greedily, several at temperature 1."""

    path: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    prompts: int = 64
    every: int = 0
    samples: int = 1
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.every and not self.path:
            raise ValueError("held_out.every needs held_out.path")
        if self.every < 0 or self.prompts < 1 or self.samples < 1:
            raise ValueError("held_out.every must be at least 0, held_out.prompts and held_out.samples at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecipe:
    """What all runs that learn from rollouts have. init: folder of the model it starts from. steps: of rollouts.
    numerics: what the learner computes in. device: of learner, engine and teachers: cpu, cuda, cuda:N or auto. micro:
    tokens of one forward pass. qat_from: update from which it computes with the released numbers. efforts: by reasoning
    mode. save_seconds: between states."""

    name: str
    init: str
    prompts: PromptSettings
    lr: RateSettings
    efforts: dict[Effort, EffortSettings]
    steps: int
    seed: int = 0
    numerics: Literal["fp32", "bf16"] = "fp32"
    device: str = "cpu"
    micro: int = 4096
    qat_from: int | None = None
    save_seconds: float = 300.0
    environment: EnvironmentSettings = field(default_factory=EnvironmentSettings)
    rollouts: SamplingSettings = field(default_factory=SamplingSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    held_out: HeldOutSettings = field(default_factory=HeldOutSettings)
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if not is_plain(self.name):
            raise ValueError(f"name must be {PLAIN}, got {self.name!r}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63), got {self.seed}")
        check_device(self.device)
        for name in ("steps", "micro"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.save_seconds < 0:
            raise ValueError(f"save_seconds must be at least 0, got {self.save_seconds}")
        if not self.efforts:
            raise ValueError(f"efforts must not be empty; there are {', '.join(Effort)}")
        if self.rollouts.truncates and self.rollouts.replay is False:
            raise ValueError("rollouts: top_p, top_k and min_p need replay: without the kept ids ratios are biased")

    @property
    def replays(self) -> bool:
        """Whether the engine records its choices and the learner repeats them."""
        if self.rollouts.replay is not None:
            return self.rollouts.replay
        return self.rollouts.truncates or self.rollouts.numerics != self.numerics

    @property
    def asked(self) -> int:
        """Prompts that a step may ask."""
        return self.rollouts.prompts

    @property
    def keeps_reference(self) -> bool:
        """Whether it writes a reference beside its states."""
        return False

    def check_teachers(self, vocabulary: int, tokenizer: "Tokenizer") -> None:
        """Raise ValueError or FileNotFoundError where this kind of run cannot learn from the models that it names."""

    def check_domain(self, prompt: Prompt) -> None:
        """Raise ValueError where this kind of run cannot learn from a prompt of that domain."""

    @classmethod
    def from_file(cls, file: str | Path, changes: Iterable[str] = ()) -> Self:
        """Read a TOML file; `changes` are "dotted.key=value" with TOML values. Raises ValueError naming the field."""
        return read_recipe(cls.from_dict, file, changes)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Raises ValueError naming a field that is unknown, missing or wrong."""
        check_fields(cls, {name: value for name, value in raw.items() if name not in cls.by_name()})
        return strictly(cls, raw)

    @classmethod
    def by_name(cls) -> set[str]:
        """Fields that are tables of tables, under names of the user."""
        return {"efforts"}

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: what a run's folder keeps."""
        return TypeAdapter(type(self)).dump_python(self, mode="json")

    def check_resume(self, made: Mapping[str, Any], folder: Path) -> None:
        """Raise ValueError naming a field by which the run of the state in `folder` would have gone otherwise. Free are
        steps (of a constant rate), save_seconds, micro, device, and what is held out."""
        made = {**made, "optimizer": of_any_version(made["optimizer"])}
        free = {"save_seconds", "micro", "device", "held_out"} | ({"steps"} if self.lr.shape == "constant" else set())
        own = {name: value for name, value in self.to_dict().items() if name not in free}
        for name, value in own.items():
            if new := self._unknown_to(made, name):
                raise ValueError(
                    f"the run in {folder} was begun by an older dsv4, which had no {new}: finish it with that version, "
                    "or begin a new run in another folder"
                )
            sides = (made[name], value) if name != "optimizer" else (acting(made[name]), acting(value))
            if (found := first_difference(*sides, name)) is not None:
                where, was, now = found
                raise ValueError(
                    f"{folder} was made with another recipe: {where} differs (it was {was!r}, now it is {now!r}); use "
                    "another folder, or set it as it was"
                )

    def _unknown_to(self, made: Mapping[str, Any], name: str) -> str:
        """The field `name`, or the first one in it, that the recipe `made` does not have at all; "" if it has all."""
        if name not in made:
            return name
        own, other = getattr(self, name), made[name]
        if not is_dataclass(own) or not isinstance(other, Mapping):
            return ""
        return next((f"{name}.{each.name}" for each in fields(own) if each.name not in other), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoRecipe(RolloutRecipe):
    """A GRPO run."""

    policy: PolicySettings = field(default_factory=PolicySettings)
    kl: KlSettings = field(default_factory=KlSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        RolloutRecipe.__post_init__(self)  # super() does not know a class that slots have made anew
        if self.rollouts.group < 2:
            raise ValueError(f"rollouts.group must be at least 2, got {self.rollouts.group}")
        if self.rollouts.asynchronous and self.policy.stale < 1:
            raise ValueError("policy.stale must be at least 1 where rollouts are asynchronous")
        share, prompts = self.selection.again, self.rollouts.prompts
        if share > 0 and asked_again(share, prompts) < 1:
            raise ValueError(
                f"selection.again must be 0, or large enough for one prompt of a step: {share} of rollouts.prompts = "
                f"{prompts} is none; the smallest whole share is {1 / prompts:.4g}"
            )

    @property
    def asked(self) -> int:
        return self.rollouts.prompts * self.selection.draws

    @property
    def keeps_reference(self) -> bool:
        return self.kl.used

    @property
    def updates(self) -> int:
        """Of the whole run."""
        return self.steps * self.policy.updates
