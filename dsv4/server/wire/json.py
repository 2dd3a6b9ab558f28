"""JSON: values to bytes that every reader of lines takes as one, and bytes of clients to values."""

import re
from typing import Any

import msgspec

from dsv4.server.wire.errors import ApiError

# more values than any conversation of a context has: each costs memory and time many times its bytes
LEAST_VALUES = 250_000
# larger ones are decoded entry by entry, so that other threads get their turn in between
PIECEWISE_BYTES = 1 << 20
# one escape of a JSON string: half of a surrogate pair, both halves, or anything else
_ESCAPES = re.compile(rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2})?|u[dD][c-fC-F]..|.)", re.S)
_WHOLE_PAIR = 12
# some programs begin every UTF-8 text with it; RFC 8259 lets a reader ignore it
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def to_json(value: object) -> bytes:
    """Compact JSON bytes."""
    return msgspec.json.encode(value)


# some readers of events end a line at them too; in JSON they stand only inside of strings
SEPARATORS = {character.encode(): f"\\u{ord(character):04x}".encode() for character in "\u2028\u2029\x85"}


def json_line(value: object) -> bytes:
    """Compact JSON bytes without any character that some reader takes for the end of a line."""
    body = to_json(value)
    if not body.isascii():
        for raw, escaped in SEPARATORS.items():
            body = body.replace(raw, escaped)
    return body


def decode(body: bytes | bytearray, context_length: int) -> Any:
    """The value of a JSON text. Half of an escaped surrogate pair, as in a string cut within an emoji, is U+FFFD. A
    byte order mark at the beginning is ignored.

    Raises ApiError 400 for what is no JSON, or holds more values than requests have.
    """
    if body.startswith(_BYTE_ORDER_MARK):
        body = body[len(_BYTE_ORDER_MARK) :]
    most = max(LEAST_VALUES, 2 * context_length)
    # commas within strings count too, so only a body with many is looked at closely
    if body.count(b",") > most and has_more(body, most):
        raise ApiError(400, f"body: at most {most:,} values are accepted", param="body", code="too_large")
    try:
        try:
            return _decode(body)
        except msgspec.DecodeError:
            repaired = _ESCAPES.sub(_repaired, body) if b"\\u" in body else body
            if repaired == body:
                raise
            return _decode(repaired)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"body: not valid JSON: {error}", param="body", code="invalid_json") from error


def _decode(body: bytes | bytearray) -> Any:
    if len(body) < PIECEWISE_BYTES or not body.lstrip(b" \t\r\n").startswith(b"{"):
        return msgspec.json.decode(body)
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return {name: _field(value) for name, value in fields.items()}


def _field(value: msgspec.Raw) -> Any:
    if len(memoryview(value)) < PIECEWISE_BYTES or bytes(memoryview(value)[:1]) != b"[":
        return msgspec.json.decode(value)
    return [msgspec.json.decode(entry) for entry in msgspec.json.decode(value, type=list[msgspec.Raw])]


def _repaired(match: "re.Match[bytes]") -> bytes:
    text = match.group()
    half = text[1:2] == b"u" and text[2:3] in b"dD" and text[3:4] in b"89abcdefABCDEF"
    return b"\\ufffd" if half and len(text) < _WHOLE_PAIR else text


def has_more(body: bytes | bytearray, most: int) -> bool:
    """Whether there are more than `most` commas between the values of a JSON text, those in strings left out."""
    found = at = 0
    while found <= most:
        quote = body.find(b'"', at)
        found += body.count(b",", at, quote if quote >= 0 else len(body))
        if quote < 0:
            break
        at = _end_of_string(body, quote + 1)
    return found > most


def _end_of_string(body: bytes | bytearray, at: int) -> int:
    while (quote := body.find(b'"', at)) >= 0:
        slashes = 0
        while body[quote - 1 - slashes] == 0x5C:
            slashes += 1
        at = quote + 1
        if slashes % 2 == 0:
            return at
    return len(body)
