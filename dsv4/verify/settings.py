"""What the user wants of a run."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dsv4.verify.questions import Question

CHECKS = ("surface", "rendering", "lengths", "batches", "calls", "fixtures")
_BOUND = re.compile(r"([a-z0-9.-]+)(<=|>=)(-?\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Bound:
    """A measure outside of it is a fault. name: of the measure, with its check: `fixtures.top-1`."""

    name: str
    sign: str
    value: float

    def holds(self, measured: float) -> bool:
        """Whether a measured value is inside."""
        return measured <= self.value if self.sign == "<=" else measured >= self.value


@dataclass(frozen=True, slots=True)
class Settings:
    """only, skip: names of checks. seconds: for the whole run. dialect: of the prompts, "" = what the endpoint tells,
    or the nearest. fixtures: a file of recorded continuations. bounds: of measures. questions: of the user, about
    tools. wrong_lines: what is wrong with lines of the user's files that are no questions, each with its place."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    seconds: float = 1800.0
    dialect: str = ""
    fixtures: Path | None = None
    bounds: tuple[Bound, ...] = field(default_factory=tuple)
    questions: tuple[Question, ...] = ()
    wrong_lines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for flag, names in (("--only", self.only), ("--skip", self.skip)):
            if unknown := [name for name in names if name not in CHECKS]:
                raise ValueError(f"{flag} must be one of {', '.join(CHECKS)}, got {unknown[0]!r}")
        if not self.seconds > 0:
            raise ValueError(f"--minutes must be above 0, got {self.seconds / 60:g}")
        if not self.chosen():
            raise ValueError("--only and --skip leave no check")

    def chosen(self) -> tuple[str, ...]:
        """The checks of this run, in their order."""
        return tuple(name for name in CHECKS if (not self.only or name in self.only) and name not in self.skip)


def read_bounds(texts: Iterable[str]) -> tuple[Bound, ...]:
    """Bounds as users write them: `fixtures.top-1>=0.95`. Raises ValueError."""
    found = []
    for text in texts:
        match = _BOUND.fullmatch(text.replace(" ", ""))
        if match is None or match[1].split(".")[0] not in CHECKS or "." not in match[1]:
            raise ValueError(f"--bound must be CHECK.MEASURE>=NUMBER or CHECK.MEASURE<=NUMBER, got {text!r}")
        found.append(Bound(match[1], match[2], float(match[3])))
    return tuple(found)
