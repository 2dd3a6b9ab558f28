"""What the HTML reports of `dsv4 verify` and `dsv4 eval` are made of: one file that needs nothing else, for a browser,
an e-mail, or the artefacts of a CI run."""

from collections.abc import Iterable
from html import escape

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
article.warn { border-color: var(--warn); color: inherit; } article.model { border-color: var(--line); }
article h3 { margin: .2rem 0; font-size: 1rem; font-family: ui-monospace, monospace; }
dl { display: grid; grid-template-columns: 6rem 1fr; gap: .2rem .8rem; margin: .4rem 0; }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
pre { overflow: auto; padding: .7rem; border: 1px solid var(--line); border-radius: .4rem; font-size: .82rem;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 16rem; }
"""


def document(title: str, body: Iterable[str]) -> str:
    """A whole page. title: text. body: HTML."""
    name = escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>'
    inner = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head><body>\n'
        f"<h1>{name}</h1>\n{inner}\n</body></html>\n"
    )


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, numbers: int = 99) -> str:
    """numbers: the first column that is aligned as numbers. Cells are HTML."""
    top = f"<tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>" if heads else ""
    lines = (
        "".join(f"<td{' class=number' if i >= numbers else ''}>{cell}</td>" for i, cell in enumerate(row))
        for row in rows
    )
    return f"<table>{top}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
