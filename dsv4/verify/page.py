"""The report as one HTML file that needs nothing else: for a browser, an e-mail, or the artefacts of a CI run."""

from collections.abc import Iterable
from html import escape

from dsv4.verify.findings import CheckResult, Finding, Outcome, Report, Severity

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f4b; --bad: #c0392b; --warn: #b07408; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
.verdict { font-size: 1.1rem; font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
.warn { color: var(--warn); } .quiet { opacity: .75; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
article { border-left: 4px solid var(--bad); padding: .2rem 1rem; margin: 1rem 0; }
article.warn { border-color: var(--warn); color: inherit; }
article h3 { margin: .2rem 0; font-size: 1rem; font-family: ui-monospace, monospace; }
dl { display: grid; grid-template-columns: 6rem 1fr; gap: .2rem .8rem; margin: .4rem 0; }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
pre { overflow: auto; padding: .7rem; border: 1px solid var(--line); border-radius: .4rem; font-size: .82rem;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 16rem; }
"""
_COLOURS = {Outcome.PASSED: "good", Outcome.FAULTS: "bad", Outcome.SKIPPED: "quiet", Outcome.CUT: "warn"}


def page(report: Report) -> str:
    """The whole page. Everything that an endpoint has said is escaped."""
    faults = len(report.faults)
    verdict, colour = {
        0: ("No fault found", "good"),
        1: (f"{faults} kind{'s' if faults != 1 else ''} of fault found", "bad"),
        2: ("Not finished: no fault found in what was checked", "warn"),
    }[report.exit_code]
    title = f"dsv4 verify: {escape(report.target)}"
    body = [
        f"<h1>{title}</h1>",
        f'<p class="quiet">model {escape(report.model or "not named")}, {escape(report.began)}</p>',
        f'<p class="verdict {colour}">{verdict}</p>',
        _overview(report.results),
        *map(_section, report.results),
        "<h2>What the endpoint can do</h2>",
        _table((), ((escape(name), escape(value)) for name, value in report.facts.items())),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    style = f"<style>{_STYLE}</style>"
    inner = "\n".join(body)
    return f'<!doctype html>\n<html lang="en"><head>{head}{style}</head><body>\n{inner}\n</body></html>\n'


def _overview(results: Iterable[CheckResult]) -> str:
    rows = (
        (
            f'<a href="#{escape(result.name)}">{escape(result.name)}</a>',
            f'<span class="{_COLOURS[result.outcome]}">{result.outcome.value}</span>',
            str(sum(found.severity is Severity.FAULT for found in result.findings)),
            str(sum(found.severity is Severity.WARNING for found in result.findings)),
            str(result.requests),
            f"{result.seconds:.1f}",
        )
        for result in results
    )
    return _table(("check", "outcome", "faults", "warnings", "requests", "seconds"), rows, numbers=2)


def _section(result: CheckResult) -> str:
    parts = [f'<h2 id="{escape(result.name)}">{escape(result.name)}</h2><p>{escape(result.question)}</p>']
    parts += map(_finding, result.findings)
    if result.measures:
        rows = ((escape(m.name), escape(m.meaning), f"{m.value:.4g}") for m in result.measures)
        parts.append(_table(("measure", "meaning", "value"), rows, numbers=2))
    if result.skipped:
        lines = "".join(f"<li>{escape(text)}</li>" for text in result.skipped)
        parts.append(f'<p class="quiet">Not checked:</p><ul class="quiet">{lines}</ul>')
    return "\n".join(parts)


def _finding(found: Finding) -> str:
    kind = "warn" if found.severity is Severity.WARNING else "bad"
    times = f" ({found.times} times)" if found.times > 1 else ""
    again = f"<details><summary>repeat it</summary><pre>{escape(found.reproduce)}</pre></details>"
    return (
        f'<article class="{kind}"><h3>{found.severity.value}: {escape(found.check)}.{escape(found.code)}{times}</h3>'
        f"<dl><dt>expected</dt><dd>{escape(found.expected)}</dd><dt>got</dt><dd>{escape(found.got)}</dd></dl>"
        f"{again if found.reproduce else ''}</article>"
    )


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, numbers: int = 99) -> str:
    """numbers: the first column that is aligned as numbers. Cells are HTML."""
    top = f"<tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>" if heads else ""
    lines = (
        "".join(f"<td{' class=number' if i >= numbers else ''}>{cell}</td>" for i, cell in enumerate(row))
        for row in rows
    )
    return f"<table>{top}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
