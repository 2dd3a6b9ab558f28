"""`dsv4 usage`: tokens and costs of a server's answers, by day, key and model."""

from pathlib import Path

from dsv4.observe import printable

WIDEST = 48


def usage(*, ledger: Path | None = None, since: str | None = None, key: str | None = None, json: bool = False) -> None:
    """Print tokens and costs from the ledger of `dsv4 serve`. The costs are those of the official service.

    Parameters
    ----------
    ledger
        The ledger's file. Default: that of `dsv4 serve`.
    since
        First day, as 2026-11-22 (UTC), or a number of days before today, as 7d.
    key
        Only the usage of the key with this name.
    json
        Print one JSON list instead of a table.
    """
    import json as json_format
    from dataclasses import asdict

    from dsv4.server.accounts.ledger import default_ledger, first_day, read_usage

    rows = read_usage(ledger or default_ledger(), since=first_day(since), key=key)
    if json:
        print(json_format.dumps([asdict(row) for row in rows]))
        return
    heads = ("day", "key", "model", "requests", "prompt", "cached", "completion", "reasoning", "USD")
    lines = [(*map(_cell, (r.day, r.key or "-", r.model)), *map(str, (r.requests, r.prompt, r.cached, r.completion,
              r.reasoning)), f"{r.cost:.6f}") for r in rows]  # fmt: skip
    sums = [sum(getattr(r, name) for r in rows) for name in ("requests", "prompt", "cached", "completion", "reasoning")]
    lines.append(("total", "", "", *map(str, sums), f"{sum(r.cost for r in rows):.6f}"))
    widths = [max(len(line[i]) for line in (heads, *lines)) for i in range(len(heads))]
    for line in (heads, *lines):
        texts = [
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(texts).rstrip())


def _cell(text: str) -> str:
    """A name, made printable and short; older ledgers hold unchecked names of clients."""
    shown = printable(text[: WIDEST + 1])
    return shown if len(shown) <= WIDEST else f"{shown[: WIDEST - 1]}…"
