"""Server-sent events as raw bytes."""

import uuid
from collections.abc import Callable, Mapping

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


class TextEvents:
    """Events that differ in one string only: the rest is written once. make: the event of a text."""

    def __init__(self, make: Callable[[str], bytes]) -> None:
        # no client knows the mark, so that no other field holds it
        mark = uuid.uuid4().hex
        self._before, self._after = make(mark).split(b'"%b"' % mark.encode())

    def event(self, text: str) -> bytes:
        """What `make(text)` gives."""
        return self._before + json_line(text) + self._after
