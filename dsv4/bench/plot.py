"""Line charts as SVG text, drawn by hand so that no plotting library is needed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsv4.bench.speed import Speed

WIDTH, HEIGHT, LEFT, TOP, PLOT_W, PLOT_H, GAP = 1000, 400, 74, 58, 380, 270, 110
COLOURS = ("#8a8f98", "#2f6fde", "#12a150", "#d9480f", "#7a3fc4")


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: `lines` maps a label to values evenly spaced along the axis; `ticks` label these, first to last;
    `notes` follow the labels of the lines."""

    title: str
    unit: str
    lines: dict[str, list[float]]
    ticks: tuple[str, ...] = ("0", "256K", "512K", "768K", "1024K")
    notes: dict[str, str] = field(default_factory=dict)
    axis: str = "context, tokens"


def speed_svg(rows: Sequence["Speed"]) -> str:
    """Prefill and decode rates against context length, one line per engine, contexts as measured."""
    contexts = sorted({row.context for row in rows})
    ticks = tuple(_tokens(context) for context in contexts)
    prefill: dict[str, list[float]] = {}
    decode: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: row.context):
        prefill.setdefault(row.engine, []).append(row.prefill_rate)
        decode.setdefault(row.engine, []).append(row.decode_rate)
    return charts_svg([Panel("Prefill", "tokens/s", prefill, ticks), Panel("Decode", "tokens/s", decode, ticks)])


def _tokens(count: int) -> str:
    return f"{round(count / 1024)}K" if count >= 1024 else str(count)


def charts_svg(panels: Sequence[Panel]) -> str:
    """Charts side by side."""
    body = "".join(_panel(panel, LEFT + i * (PLOT_W + GAP)) for i, panel in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="#222">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{body}</svg>\n'
    )


def _panel(panel: Panel, left: int) -> str:
    top = _round_up(max(max(values) for values in panel.lines.values()))
    parts = [f'<text x="{left}" y="{TOP - 26}" font-size="16" font-weight="600">{panel.title}</text>']
    parts.append(f'<text x="{left}" y="{TOP - 9}" fill="#666">{panel.unit}</text>')
    for i in range(5):
        y = TOP + PLOT_H * (1 - i / 4)
        parts.append(f'<line x1="{left}" x2="{left + PLOT_W}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#666">{top * i / 4:g}</text>')
    for i, tick in enumerate(panel.ticks):
        x = left + PLOT_W * i / max(1, len(panel.ticks) - 1)
        parts.append(f'<text x="{x:.1f}" y="{TOP + PLOT_H + 20}" text-anchor="middle" fill="#666">{tick}</text>')
    parts.append(
        f'<text x="{left + PLOT_W / 2}" y="{TOP + PLOT_H + 42}" text-anchor="middle" fill="#666">{panel.axis}</text>'
    )
    for i, (label, values) in enumerate(panel.lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        points = " ".join(
            f"{left + PLOT_W * j / max(1, len(values) - 1):.1f},{TOP + PLOT_H * (1 - value / top):.1f}"
            for j, value in enumerate(values)
        )
        if len(values) == 1:  # a line of one point would not be seen
            x, height = points.split(",")
            parts.append(f'<circle cx="{x}" cy="{height}" r="4" fill="{colour}"/>')
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        y = TOP + 16 + 19 * i
        parts.append(f'<rect x="{left + 14}" y="{y - 9}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + 34}" y="{y - 2}">{label}  {panel.notes.get(label, "")}</text>')
    return "".join(parts)


def _round_up(value: float) -> float:
    """The next 'nice' axis end: 1, 1.2, 1.6, 2, 4, 5, 6, 8 times a power of ten."""
    scale = 10.0 ** (len(str(int(value))) - 1) if value >= 1 else 0.1
    return next(nice * scale for nice in (1, 1.2, 1.6, 2, 4, 5, 6, 8, 10) if nice * scale >= value)
