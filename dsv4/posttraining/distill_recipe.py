"""A distillation run as data (see `recipe`). No torch."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict

from dsv4.posttraining.distill_tokens import TokenSettings
from dsv4.posttraining.recipe import RolloutRecipe
from dsv4.posttraining.types import Prompt

if TYPE_CHECKING:
    from dsv4.encoding import Tokenizer

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """path: a checkpoint folder, the folder of a finished run, or the name of a pulled model. weight: w of equation 29,
    by the teacher's importance; not published. Domains may share a teacher."""

    path: str
    weight: float = 1.0
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"teachers: weight must be positive, got {self.weight}")


@dataclass(frozen=True, slots=True)
class ObjectiveSettings:
    """What is minimised on a step's samples; everything but "reverse" is a control.

    kind: "reverse" the report's KL(student || teacher) over the whole vocabulary; "forward" KL(teacher || student);
    "jsd" between both by `beta`; "top-k" the reverse sum over the student's `top_k` likeliest ids (`detached`: without
    the bias that pushes them down); "sampled" the chosen token alone, as an advantage; "sft" cross entropy on samples
    of the teachers. normalise: "domains" a domain counts as its weight says, however long its answers are; "tokens"
    each token does. updates: how many share the rollouts of a step. reference: weight of KL(student || initial
    student). teacher_share: share of each step's prompts that the teachers answer in the student's place (all of them
    with "sft").
    """

    kind: Literal["reverse", "forward", "jsd", "top-k", "sampled", "sft"] = "reverse"
    beta: float = 0.5
    top_k: int = 64
    detached: bool = True
    normalise: Literal["domains", "tokens"] = "domains"
    updates: int = 1
    reference: float = 0.0
    teacher_share: float = 0.0
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ValueError(f"objective.beta must lie between 0 and 1, got {self.beta}")
        for name in ("top_k", "updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"objective.{name} must be at least 1, got {getattr(self, name)}")
        if not self.reference >= 0:
            raise ValueError(f"objective.reference must be at least 0, got {self.reference}")
        if not 0 <= self.teacher_share <= 1:
            raise ValueError(f"objective.teacher_share must be in [0, 1], got {self.teacher_share}")

    @property
    def answered_by_teachers(self) -> float:
        """The share of prompts."""
        return 1.0 if self.kind == "sft" else self.teacher_share


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Teachers' last hidden states on the disk. numerics: what teachers compute in. width: of the numbers that are
    kept. resident: how many teachers may be in memory at once; from two on the next is loaded while one computes."""

    numerics: Literal["fp32", "bf16", "release"] = "fp32"
    width: Literal["fp32", "bf16"] = "fp32"
    resident: int = 1
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.resident < 1:
            raise ValueError(f"cache.resident must be at least 1, got {self.resident}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRecipe(RolloutRecipe):
    """A run of on-policy distillation. teachers: by domain."""

    teachers: dict[str, TeacherSettings]
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        RolloutRecipe.__post_init__(self)
        if not self.teachers:
            raise ValueError("teachers must not be empty: one table for each domain, with its path")
        if self.rollouts.asynchronous and self.objective.answered_by_teachers:
            raise ValueError("rollouts.asynchronous: the engine cannot hold a teacher while the student is ahead")

    @classmethod
    def by_name(cls) -> set[str]:
        return {"efforts", "teachers"}

    def at(self, folder_of: Callable[[str], str]) -> "DistillRecipe":
        """The same with the paths of the models that it names. folder_of: the path of a name."""
        teachers = {domain: replace(t, path=folder_of(t.path)) for domain, t in self.teachers.items()}
        return replace(self, init=folder_of(self.init), teachers=teachers)

    def check_teachers(self, vocabulary: int, tokenizer: "Tokenizer") -> None:
        from dsv4.posttraining.teachers import open_teachers  # loads torch, which a recipe alone does not need

        open_teachers([Path(path) for path in self.paths], vocabulary, tokenizer)

    def check_domain(self, prompt: Prompt) -> None:
        if prompt.domain not in self.teachers:
            raise ValueError(f"teachers.{prompt.domain} is missing: prompt {prompt.key} is of this domain")

    @property
    def updates(self) -> int:
        """Of the whole run."""
        return self.steps * self.objective.updates

    @property
    def paths(self) -> list[str]:
        """Of the teachers, each once: a teacher's number is its place."""
        return list(dict.fromkeys(teacher.path for teacher in self.teachers.values()))

    @property
    def numbers(self) -> dict[str, int]:
        """The teacher of each domain."""
        return {domain: self.paths.index(teacher.path) for domain, teacher in self.teachers.items()}
