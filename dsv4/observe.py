"""Structured log lines, and text from outside made fit for a terminal. Data goes to stdout, everything said about it
goes to stderr."""

import json
import re
import sys
import time
from contextlib import suppress
from typing import TextIO

# what a terminal acts on instead of showing it (C0, DEL, C1), what turns the order of a line around (bidirectional
# embeddings, overrides and isolates), what only some programs break lines at, and what no encoding can write
_ACTS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_TEXT = 20_000


def log(event: str, /, stream: TextIO | None = None, **fields: object) -> None:
    """Write one JSON line {"t", "event", ...fields} to stderr (or `stream`). What a terminal would act on is escaped;
    texts of more than LONGEST_TEXT characters are cut. A stderr that cannot be written (a full disk, a closed terminal)
    loses the line and costs nothing else; another `stream` raises what it raises."""
    bounded = {
        name: f"{value[:LONGEST_TEXT]}…" if isinstance(value, str) and len(value) > LONGEST_TEXT else value
        for name, value in fields.items()
    }
    line = json.dumps({"t": round(time.time(), 3), "event": event, **bounded}, ensure_ascii=False, default=str)
    line = _ACTS.sub(lambda match: f"\\u{ord(match.group()):04x}", line)
    if stream is not None:
        print(line, file=stream, flush=True)
        return
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def printable(text: str, *, lines: bool = False) -> str:
    r"""`text` as a terminal may show it: nothing in it moves the cursor, changes colours or sets a title.

    C0 characters become their pictures (ESC is U+241B), the others that act on a terminal U+FFFD. lines: line breaks
    and tabs stay, carriage returns go: for texts; without it the result is one line: for names.

    >>> printable("a\x1b[31mb")
    'a\u241b[31mb'
    """

    def shown(match: re.Match[str]) -> str:
        char = match.group()
        if lines and char in "\n\t":
            return char
        if lines and char == "\r":
            return ""
        return chr(0x2400 + ord(char)) if char < " " else "\u2421" if char == "\x7f" else "\ufffd"

    return _ACTS.sub(shown, text)
