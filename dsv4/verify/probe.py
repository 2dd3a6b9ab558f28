"""What a check works with: the endpoint, what it can do, the time that is left, and where findings go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dsv4.verify.answer import Answer
from dsv4.verify.endpoint import CHAT, Endpoint, RefusedError
from dsv4.verify.findings import CheckResult, Finding, Measure, Outcome, Severity
from dsv4.verify.settings import Settings
from dsv4.verify.survey import Abilities

# nats between the two likeliest tokens below which a difference may come from rounding: in bfloat16 two logits of the
# size that models have differ by steps of an eighth
TIE = 0.25
LONGEST = 400  # characters of what is shown


class NotPossible(Exception):
    """The endpoint lacks what a whole check needs."""


@dataclass(slots=True)
class Probe:
    """The hands of one check. say: shows a line of progress."""

    endpoint: Endpoint
    able: Abilities
    settings: Settings
    result: CheckResult
    say: Callable[[str], None]

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """A whole chat completion. Raises TimeUp instead when the time is over; RefusedError, UnreachableError."""
        self.check_time()
        answer = self.endpoint.chat(body)
        self.check_form(answer, body)
        return answer

    def stream(self, body: Mapping[str, Any]) -> Answer:
        """A streamed one, whose own faults are recorded."""
        self.check_time()
        answer = self.endpoint.stream(body)
        self.check_form(answer, {**body, "stream": True})
        return answer

    def check_form(self, answer: Answer, body: Mapping[str, Any]) -> None:
        """Record what is wrong with the form of an answer."""
        for problem in answer.problems:
            self.fault("answer-form", "the form of OpenAI's chat completions", problem, body)

    def check_time(self) -> None:
        """Raise TimeUp when the time of the run is over."""
        self.endpoint.check_time()

    def fault(
        self, code: str, expected: object, got: object, body: Mapping[str, Any], *, path: str = CHAT, tie: bool = False
    ) -> None:
        """Record a fault; with `tie` a warning of the same name: the difference may be rounding."""
        severity = Severity.WARNING if tie else Severity.FAULT
        self._add(code + ("-near-tie" if tie else ""), severity, expected, got, self.endpoint.command(path, body))

    def warn(self, code: str, expected: object, got: object, body: Mapping[str, Any], *, path: str = CHAT) -> None:
        """Record what no standard forbids, or what may have another reason."""
        self._add(code, Severity.WARNING, expected, got, self.endpoint.command(path, body))

    def mistake(self, code: str, expected: object, got: object, body: Mapping[str, Any]) -> None:
        """Record what the model did wrong, for which the endpoint is not to blame."""
        self._add(f"{code}-by-model", Severity.MISTAKE, expected, got, self.endpoint.command(CHAT, body))

    def refused(self, error: RefusedError, what: str) -> None:
        """Record that a request which every server answers was refused."""
        code = "server-error" if error.status >= 500 else "refused"
        self._add(code, Severity.FAULT, f"status 200 for {what}", str(error), error.command)

    def measure(self, name: str, value: float, meaning: str) -> None:
        """Record a figure."""
        self.result.measures.append(Measure(self.result.name, name, value, meaning))

    def skip(self, what: str) -> None:
        """Record what could not be checked, and why."""
        if what not in self.result.skipped:
            self.result.skipped.append(what)

    def record(self, new: Finding) -> None:
        """Record a finding of another kind than those before."""
        self.result.findings.append(new)
        if new.severity is Severity.FAULT:
            self.result.outcome = Outcome.FAULTS
        self.say(f"  {new.severity.value}: {new.check}.{new.code}: expected {new.expected}, got {new.got}")

    def _add(self, code: str, severity: Severity, expected: object, got: object, command: str) -> None:
        for place, known in enumerate(self.result.findings):
            if known.code == code:
                self.result.findings[place] = replace(known, times=known.times + 1)
                return
        self.record(Finding(self.result.name, code, severity, shown(expected), shown(got), command))


def shown(value: object) -> str:
    """A value for people, on one line and not too long."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def parting(left: Sequence[object], right: Sequence[object]) -> int:
    """The first place at which two sequences differ; the length of the shorter one if the other continues it."""
    shorter = min(len(left), len(right))
    return next((i for i in range(shorter) if left[i] != right[i]), shorter)


def difference(left: Answer, right: Answer) -> tuple[str, str]:
    """Where two answers part, with some text before it: what a person needs to see of each."""
    for a, b in ((left.reasoning, right.reasoning), (left.content, right.content)):
        if a != b:
            at = parting(a, b)
            return f"...{a[max(0, at - 30) : at + 60]!r}", f"...{b[max(0, at - 30) : at + 60]!r}"
    return repr((left.calls, left.finish)), repr((right.calls, right.finish))


def near_tie(left: Answer, right: Answer) -> bool:
    """Whether the first token in which two answers differ was nearly a tie: then rounding may have decided. False where
    the endpoint tells no log-probabilities."""
    for a, b in zip(left.tokens, right.tokens, strict=False):
        if a.data != b.data:
            gaps = [token.gap for token in (a, b) if token.gap is not None]
            return bool(gaps) and min(gaps) < TIE
    return False
