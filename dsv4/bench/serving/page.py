"""The report of a benchmark of servers as one HTML file with charts, which loads nothing from elsewhere."""

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape

from dsv4.bench.plot import Panel, charts_svg
from dsv4.bench.serving.run import BenchReport, LoadPoint
from dsv4.verify.html import document, table
from dsv4.workload.timing import TimingSummary, percentile

# percent of the charts that show how times are spread
SHARES = (1, 10, 25, 50, 75, 90, 95, 99)


def page(report: BenchReport) -> str:
    """The whole page. Everything that an endpoint has said is escaped."""
    title = "dsv4 bench serve: " + ", ".join(report.targets)
    body = [
        table((), ((escape(name), escape(what)) for name, what in report.targets.items())),
        "<h2>Side by side</h2>",
        table(COLUMNS, (tuple(map(escape, row)) for row in rows(report.points)), numbers=2),
        "<p>Times in milliseconds, from the time at which a request was due. TTFT: to the first token. ITL: between "
        "events of a stream. TPOT: mean time of a token after the first, by request. Rates in tokens a second.</p>",
        *_warnings(report),
    ]
    if any(point.summary.finished for point in report.points):
        body += ["<h2>By load</h2>", *_by_load(report), "<h2>How times are spread</h2>", *_spreads(report.points)]
    about = f"<pre>{escape(json.dumps(report.about, indent=1))}</pre>"
    return document(title, [*body, "<h2>What was sent</h2>", about])


COLUMNS = (
    "load", "endpoint", "answers", "errors", "output tok/s", "total tok/s", "TTFT p50", "p99", "ITL p50", "p99",
    "TPOT p50", "whole p50", "p99", "cached", "goodput/s",
)  # fmt: skip


def rows(points: Iterable[LoadPoint]) -> list[tuple[str, ...]]:
    """A row of the table for each point."""
    return [
        (
            point.load.name,
            point.target,
            f"{point.summary.finished}/{point.summary.requests}",
            str(sum(point.summary.errors.values())),
            f"{point.summary.output_rate:,.1f}",
            f"{point.summary.total_rate:,.1f}",
            *(
                _ms(times, name)
                for times, name in (
                    (point.summary.ttft, "p50"), (point.summary.ttft, "p99"), (point.summary.itl, "p50"),
                    (point.summary.itl, "p99"), (point.summary.tpot, "p50"), (point.summary.e2e, "p50"),
                    (point.summary.e2e, "p99"),
                )
            ),
            "-" if point.summary.hit_rate is None else f"{point.summary.hit_rate:.0%}",
            "-" if point.summary.goodput is None else f"{point.summary.goodput:.2f}",
        )
        for point in points
    ]  # fmt: skip


def _ms(times: dict[str, float], name: str) -> str:
    return f"{times[name] * 1000:,.1f}" if times else "-"


def _warnings(report: BenchReport) -> list[str]:
    lines = [f"<li>{escape(name)}: {escape(text)}</li>" for name, texts in report.warnings.items() for text in texts]
    for point in report.points:
        lines += [
            f"<li>{escape(point.target)}: {escape(point.load.name)}: {count} times {escape(kind)}</li>"
            for kind, count in point.summary.errors.items()
        ]
    return ["<h2>To know before comparing</h2>", f"<ul>{''.join(lines)}</ul>"] if lines else []


def _by_load(report: BenchReport) -> list[str]:
    """Charts of each measure against the load."""
    loads = list(dict.fromkeys(point.load.name for point in report.points))

    def lines(value: Callable[[TimingSummary], float]) -> dict[str, list[float]]:
        return {
            escape(name): [value(point.summary) for point in report.points if point.target == name]
            for name in report.targets
        }

    def panel(title: str, unit: str, value: Callable[[TimingSummary], float]) -> Panel:
        return Panel(title, unit, lines(value), tuple(map(escape, loads)), axis="load")

    return [
        charts_svg(
            [
                panel("Tokens of answers", "tokens/s", lambda summary: summary.output_rate),
                panel("Errors and cut answers", "requests", lambda s: float(s.requests - s.finished)),
            ]
        ),
        charts_svg(
            [
                panel("Time to the first token, p50", "ms", lambda s: 1000 * s.ttft.get("p50", 0.0)),
                panel("Time to the first token, p99", "ms", lambda s: 1000 * s.ttft.get("p99", 0.0)),
            ]
        ),
        charts_svg(
            [
                panel("Between tokens, p50", "ms", lambda s: 1000 * s.itl.get("p50", 0.0)),
                panel("Between tokens, p99", "ms", lambda s: 1000 * s.itl.get("p99", 0.0)),
            ]
        ),
    ]


def _spreads(points: Sequence[LoadPoint]) -> list[str]:
    """Charts of percentiles at each load, the endpoints as lines."""
    charts = []
    for load in dict.fromkeys(point.load.name for point in points):
        here = [point for point in points if point.load.name == load and point.summary.finished]
        if not here:
            continue
        first = {escape(p.target): _shares(t.first for t in p.timings if t.ok) for p in here}
        gaps = {escape(p.target): _shares(gap for t in p.timings if t.ok for gap in t.gaps) for p in here}
        ticks = tuple(f"{share}%" for share in SHARES)
        panels = [Panel(f"First token, {escape(load)}", "ms", first, ticks, axis="share of requests")]
        if gaps := {name: values for name, values in gaps.items() if values}:
            panels.append(Panel(f"Between tokens, {escape(load)}", "ms", gaps, ticks, axis="share of gaps"))
        charts.append(charts_svg(panels))
    return charts


def _shares(seconds: Iterable[float]) -> list[float]:
    known = sorted(seconds)
    return [1000 * percentile(known, share) for share in SHARES] if known else []
