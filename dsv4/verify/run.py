"""A run of `dsv4 verify`: the checks one after another, within a time, and what they found."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from dsv4.verify import batches, calls, fixtures, lengths, rendering, surface
from dsv4.verify.endpoint import Endpoint, RefusedError, TimeUp, UnreachableError
from dsv4.verify.findings import CheckResult, Finding, Outcome, Report, Severity
from dsv4.verify.probe import NotPossible, Probe
from dsv4.verify.settings import Settings
from dsv4.verify.survey import survey

_CHECKS: dict[str, tuple[str, Callable[[Probe], None]]] = {
    "surface": (surface.QUESTION, surface.check),
    "rendering": (rendering.QUESTION, rendering.check),
    "lengths": (lengths.QUESTION, lengths.check),
    "batches": (batches.QUESTION, batches.check),
    "calls": (calls.QUESTION, calls.check),
    "fixtures": (fixtures.QUESTION, fixtures.check),
}


def verify(endpoint: Endpoint, settings: Settings, say: Callable[[str], None] = lambda line: None) -> Report:
    """Check an endpoint. say: shows lines of progress. Raises UnreachableError, and RefusedError if the endpoint does
    not answer a plain chat completion: then nothing can be checked. Raises TimeUp if the time is over by then."""
    began, endpoint.until = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic() + settings.seconds
    able = survey(endpoint)
    report = Report(endpoint.url, able.model, began, able.told(), wrong_lines=[*settings.wrong_lines])
    say(f"{endpoint.url}: model {able.model or 'not named'}, {len(settings.chosen())} checks")
    for name in settings.chosen():
        question, check = _CHECKS[name]
        result = CheckResult(name, question)
        report.results.append(result)
        say(f"{name}: {question}")
        _run(check, Probe(endpoint, able, settings, result, say))
        say(f"  {result.outcome.value}: {result.requests} requests, {result.seconds:.1f} s")
    return report


def _run(check: Callable[[Probe], None], probe: Probe) -> None:
    """One check, whatever it meets: an endpoint that dies is a fault of the endpoint, and the other checks go on."""
    result, before, start = probe.result, probe.endpoint.requests, time.monotonic()
    try:
        check(probe)
    except TimeUp:
        probe.skip("the rest: the time was up")
        result.outcome = Outcome.CUT if result.outcome is Outcome.PASSED else result.outcome
    except NotPossible as lack:
        probe.skip(str(lack))
        result.outcome = Outcome.SKIPPED if result.outcome is Outcome.PASSED else result.outcome
    except RefusedError as error:
        probe.refused(error, "a request of this check")
    except UnreachableError as error:
        probe.fault("lost", "an answer", str(error), {})
    _judge(probe)
    result.requests, result.seconds = probe.endpoint.requests - before, round(time.monotonic() - start, 1)


def _judge(probe: Probe) -> None:
    """Compare the measures with the user's bounds, and with those of fixtures that the user has not set."""
    own = {bound.name for bound in probe.settings.bounds}
    for bound in (*probe.settings.bounds, *(bound for bound in fixtures.BOUNDS if bound.name not in own)):
        for measure in probe.result.measures:
            if f"{measure.check}.{measure.name}" == bound.name and not bound.holds(measure.value):
                expected = f"{bound.name} {bound.sign} {bound.value:g}"
                got = f"{measure.value:.4g} ({measure.meaning})"
                code = f"bound-{measure.name}"
                again = f"dsv4 verify {probe.endpoint.url} --only {measure.check}"
                if probe.settings.fixtures is not None:
                    again += f" --fixtures {probe.settings.fixtures}"
                probe.record(Finding(measure.check, code, Severity.FAULT, expected, got, again))
