"""The mean score over two properties of the items, as a map: lengths by depths, tasks by lengths."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dsv4.evals.long_prompts import label
from dsv4.evals.statistics import grouped
from dsv4.evals.suite import Graded


def heat_map(graded: Sequence[Graded], axes: tuple[str, str]) -> dict[str, Any]:
    """Means of values by two fields of the items' data, JSON: axes, rows and columns in rising order (texts as they
    come first), values per cent, None where there is no answer."""
    down, across = axes
    cells = grouped(graded, lambda one: (one.data[down], one.data[across]))
    rows, columns = (_ordered(cell[axis] for cell in cells) for axis in (0, 1))
    values = [[_percent(cells.get((row, column))) for column in columns] for row in rows]
    return {"axes": [down, across], "rows": rows, "columns": columns, "values": values}


def _ordered(found: Any) -> list[Any]:
    different = list(dict.fromkeys(found))
    return different if any(isinstance(each, str) for each in different) else sorted(different)


def _percent(answers: Sequence[Graded] | None) -> float | None:
    return None if not answers else round(100 * sum(one.value for one in answers) / len(answers), 1)


def heat_map_html(found: Mapping[str, Any]) -> str:
    """The map as a table of coloured cells: red for 0 to green for 100 per cent, with the numbers in them."""
    down, across = found["axes"]
    head = "".join(f"<th>{_name(across, column)}</th>" for column in found["columns"])
    body = "".join(
        f"<tr><th>{_name(down, row)}</th>{''.join(map(_cell, values))}</tr>"
        for row, values in zip(found["rows"], found["values"], strict=True)
    )
    corner = f"<th>{escape(down)} / {escape(across)}</th>"
    return f'<table class="heat"><thead><tr>{corner}{head}</tr></thead><tbody>{body}</tbody></table>'


def _name(axis: str, value: Any) -> str:
    return label(value) if axis == "length" else escape(f"{value} %" if axis == "depth" else str(value))


def _cell(value: float | None) -> str:
    if value is None:
        return "<td></td>"
    return f'<td style="background: hsl({1.2 * value:.0f} 60% 50% / 0.45)">{value:g}</td>'
