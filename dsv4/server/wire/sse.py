"""Server-sent events as raw bytes."""

from collections.abc import Mapping

from dsv4.server.wire.json import json_line

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def event(value: object) -> bytes:
    """One `data:` event. It is one line, because `json_line` writes no line separator."""
    body = json_line(value)
    return b"data: " + body + b"\n\n"


def named_event(name: str, fields: Mapping[str, object]) -> bytes:
    """One event with its name, which is also the field `type` of its data."""
    return b"event: " + name.encode() + b"\n" + event({"type": name, **fields})
