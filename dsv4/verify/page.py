"""The report as one HTML file."""

from collections.abc import Iterable
from html import escape

from dsv4.verify.findings import CheckResult, Finding, Outcome, Report, Severity
from dsv4.verify.html import document, table

_COLOURS = {Outcome.PASSED: "good", Outcome.FAULTS: "bad", Outcome.SKIPPED: "quiet", Outcome.CUT: "warn"}


def page(report: Report) -> str:
    """The whole page. Everything that an endpoint has said is escaped."""
    faults = len(report.faults)
    verdict, colour = {
        0: ("No fault found", "good"),
        1: (f"{faults} kind{'s' if faults != 1 else ''} of fault found", "bad"),
        2: ("Not finished: no fault found in what was checked", "warn"),
    }[report.exit_code]
    body = [
        f'<p class="quiet">model {escape(report.model or "not named")}, {escape(report.began)}</p>',
        f'<p class="verdict {colour}">{verdict}</p>',
        *_blame(report),
        _overview(report.results),
        *map(_section, report.results),
        *_wrong_lines(report),
        "<h2>What the endpoint can do</h2>",
        table((), ((escape(name), escape(value)) for name, value in report.facts.items())),
    ]
    return document(f"dsv4 verify: {report.target}", body)


def _blame(report: Report) -> list[str]:
    """What is said of the model's mistakes, if there are any."""
    if not report.mistakes:
        return []
    kinds = f"{len(report.mistakes)} kind{'s' if len(report.mistakes) != 1 else ''} of mistake"
    return [f'<p class="quiet">The model made {kinds}; the server sent on what it wrote, and is not to blame.</p>']


def _overview(results: Iterable[CheckResult]) -> str:
    rows = (
        (
            f'<a href="#{escape(result.name)}">{escape(result.name)}</a>',
            f'<span class="{_COLOURS[result.outcome]}">{result.outcome.value}</span>',
            *(str(sum(found.severity is severity for found in result.findings)) for severity in Severity),
            str(result.requests),
            f"{result.seconds:.1f}",
        )
        for result in results
    )
    return table(
        ("check", "outcome", "faults", "warnings", "mistakes of the model", "requests", "seconds"), rows, numbers=2
    )


def _section(result: CheckResult) -> str:
    parts = [f'<h2 id="{escape(result.name)}">{escape(result.name)}</h2><p>{escape(result.question)}</p>']
    parts += map(_finding, result.findings)
    if result.measures:
        rows = ((escape(m.name), escape(m.meaning), f"{m.value:.4g}") for m in result.measures)
        parts.append(table(("measure", "meaning", "value"), rows, numbers=2))
    if result.skipped:
        lines = "".join(f"<li>{escape(text)}</li>" for text in result.skipped)
        parts.append(f'<p class="quiet">Not checked:</p><ul class="quiet">{lines}</ul>')
    return "\n".join(parts)


def _wrong_lines(report: Report) -> list[str]:
    """The lines of the user's files that are no questions, if there are any."""
    if not report.wrong_lines:
        return []
    lines = "".join(f"<li>{escape(text)}</li>" for text in report.wrong_lines)
    return [f"<h2>Lines that are no questions: {len(report.wrong_lines)}</h2><ul>{lines}</ul>"]


def _finding(found: Finding) -> str:
    kind = {Severity.FAULT: "bad", Severity.WARNING: "warn", Severity.MISTAKE: "model"}[found.severity]
    times = f" ({found.times} times)" if found.times > 1 else ""
    again = f"<details><summary>repeat it</summary><pre>{escape(found.reproduce)}</pre></details>"
    return (
        f'<article class="{kind}"><h3>{found.severity.value}: {escape(found.check)}.{escape(found.code)}{times}</h3>'
        f"<dl><dt>expected</dt><dd>{escape(found.expected)}</dd><dt>got</dt><dd>{escape(found.got)}</dd></dl>"
        f"{again if found.reproduce else ''}</article>"
    )
