"""One page of docs/evidence: question, commands, table, curves, what came out."""

from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

from recipes.evidence.arms import Comparison

COLOURS = ("#3b7dd8", "#d9632b", "#2e9e5b", "#a44fc4", "#c2a21b")
Results = dict[str, list[dict[str, Any]]]


def write_page(folder: Path, name: str, comparison: Comparison, results: Results) -> None:
    """Write NAME.svg and NAME.md; a text between the marks of an existing page is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    field = comparison.measure[0]
    (folder / f"{name}.svg").write_text(curves(results, field), encoding="utf-8")
    page = folder / f"{name}.md"
    kept = _kept(page)
    parts = [
        f"# {comparison.title}",
        fill(comparison.question, 118),
        _table(comparison, results),
        f"![{field} by tokens]({name}.svg)",
        "Means over the last fifth of the tokens; no document is seen twice, so this is the loss on new text.",
        "Commands, on one core:",
        f"    python -m recipes.corpus\n    python -m recipes.evidence.run {name}",
        _arms(comparison),
        "<!-- reading -->\n" + kept + "\n<!-- /reading -->",
    ]
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _kept(page: Path) -> str:
    if not page.exists():
        return ""
    text = page.read_text(encoding="utf-8")
    return text.partition("<!-- reading -->")[2].partition("<!-- /reading -->")[0].strip()


def _arms(comparison: Comparison) -> str:
    lines = [
        f"- {arm.name}: `{arm.recipe}`"
        + "".join(f"\n  `--set {change}`" for change in arm.changes)
        + ("" if arm.reads == "as trained" else f", graded reading {arm.reads}")
        for arm in comparison.arms
    ]
    return "\n".join(lines)


def _table(comparison: Comparison, results: Results) -> str:
    questions = list(dict.fromkeys(q for runs in results.values() for r in runs for q in r["grades"]))
    head = ["arm", "seeds", *comparison.measure, *questions, "parameters", "tokens", "CPU minutes a run"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name, runs in results.items():
        cells = [name, ", ".join(str(r["seed"]) for r in runs)]
        for field in comparison.measure:
            values = [r["measured"][field] for r in runs if r["measured"][field] is not None]
            cells.append(" / ".join(f"{v:.3f}" for v in values) or "-")
        for question in questions:
            graded = [r["grades"][question] for r in runs if question in r["grades"]]
            cells.append(" / ".join(f"{100 * right / asked:.1f} % of {asked}" for right, asked in graded) or "-")
        minutes = mean(r["cpu_minutes"] for r in runs)
        rows.append([*cells, f"{runs[0]['parameters']:,}", f"{runs[0]['tokens']:,}", f"{minutes:.1f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _smooth(lines: list[dict[str, Any]], field: str) -> list[tuple[float, float]]:
    points = [(x["tokens"], x[field]) for x in lines if field in x and not x["spike"]]
    width = max(1, len(points) // 60)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(g[-1][0], mean(v for _, v in g)) for g in groups]


def curves(results: Results, field: str) -> str:
    """The field by tokens, a colour for each arm, a line for each seed."""
    width, height, left, bottom = 720, 320, 56, 28
    drawn = {name: [_smooth(r["lines"], field) for r in runs] for name, runs in results.items()}
    points = [p for runs in drawn.values() for line in runs for p in line]
    if not points:
        return "<svg xmlns='http://www.w3.org/2000/svg'/>"
    right, low, high = max(x for x, _ in points), min(y for _, y in points), max(y for _, y in points)
    high = high if high > low else low + 1

    def at(x: float, y: float) -> str:
        down = 12 + (height - 12 - bottom) * (1 - (y - low) / (high - low))
        return f"{left + (width - left - 12) * x / right:.1f},{down:.1f}"

    shapes = []
    for i in range(5):
        y = low + (high - low) * i / 4
        a, b = at(0, y), at(right, y)
        ay = a.split(",")[1]
        shapes.append(f"<path d='M{a} L{b}' stroke='#8884'/><text x='4' y='{float(ay) + 4}'>{y:.3g}</text>")
    shapes.append(f"<text x='{left}' y='{height - 8}'>0</text>")
    shapes.append(f"<text x='{width - 12}' y='{height - 8}' text-anchor='end'>{right:,.0f} tokens</text>")
    for i, (name, runs) in enumerate(drawn.items()):
        colour = COLOURS[i % len(COLOURS)]
        for line in runs:
            path = " ".join(at(x, y) for x, y in line)
            shapes.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.5'/>")
        shapes.append(f"<text x='{width - 16}' y='{28 + 16 * i}' text-anchor='end' fill='{colour}'>{name}</text>")
    style = "font: 12px system-ui, sans-serif; background: #fff"
    body = "\n".join(shapes)
    return f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' style='{style}'>\n{body}\n</svg>\n"
