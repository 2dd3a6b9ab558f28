"""What a run of `dsv4 verify` has found: faults, warnings and measures of each check."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """A fault breaks the interface or gives a wrong answer, and decides the exit code. A warning does not: the answer
    may be right, or the endpoint differs in what no standard fixes. Nor does a mistake of the model: the endpoint has
    sent on what the model wrote."""

    FAULT = "fault"
    WARNING = "warning"
    MISTAKE = "mistake of the model"


class Outcome(StrEnum):
    """How a check ended. SKIPPED: the endpoint lacks what it needs. CUT: the time was up before its end."""

    PASSED = "passed"
    FAULTS = "faults"
    SKIPPED = "skipped"
    CUT = "cut off"


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of fault in one check. code: its name, the same in every run. expected, got: of the first occurrence.
    reproduce: a shell command that repeats its request. times: how often it occurred."""

    check: str
    code: str
    severity: Severity
    expected: str
    got: str
    reproduce: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure that a check has measured, on which no verdict depends unless the user sets a bound."""

    check: str
    name: str
    value: float
    meaning: str


@dataclass(slots=True)
class CheckResult:
    """What one check found. skipped: what it could not check, and why."""

    name: str
    question: str
    outcome: Outcome = Outcome.PASSED
    findings: list[Finding] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    requests: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Report:
    """A whole run. facts: what the endpoint told about itself. wrong_lines: of the user's files of questions, which
    could not be asked."""

    target: str
    model: str
    began: str
    facts: dict[str, str]
    results: list[CheckResult] = field(default_factory=list)
    wrong_lines: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        """All faults, in the order of the checks."""
        return self.found(Severity.FAULT)

    @property
    def mistakes(self) -> list[Finding]:
        """All mistakes of the model."""
        return self.found(Severity.MISTAKE)

    def found(self, severity: Severity) -> list[Finding]:
        """All findings of one severity, in the order of the checks."""
        return [one for result in self.results for one in result.findings if one.severity is severity]

    @property
    def exit_code(self) -> int:
        """0 nothing wrong, 1 faults, 2 a check was cut off, none could run, or a question of the user could not be
        asked."""
        if self.faults:
            return 1
        outcomes = {result.outcome for result in self.results}
        return 2 if self.wrong_lines or Outcome.CUT in outcomes or outcomes <= {Outcome.SKIPPED} else 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        counts = {"faults": len(self.faults), "mistakes": len(self.mistakes)}
        return {**asdict(self), **counts, "exit_code": self.exit_code}
