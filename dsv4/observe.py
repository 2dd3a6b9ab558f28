"""Structured log lines. Data goes to stdout, everything said about it goes to stderr."""

import json
import sys
import time
from typing import TextIO


def log(event: str, /, stream: TextIO | None = None, **fields: object) -> None:
    """Write one JSON line {"t", "event", ...fields} to stderr (or `stream`)."""
    line = json.dumps({"t": round(time.time(), 3), "event": event, **fields}, ensure_ascii=False, default=str)
    print(line, file=stream or sys.stderr, flush=True)
