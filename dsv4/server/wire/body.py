"""From the bytes a client sends to a decoded body: within limits of size, of time and of memory.

A body is counted while it comes in and until its request is understood: so many bytes for one key, so many for all.
Nothing here decides what a body may say.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.requests import Request

from dsv4.server.wire.errors import ApiError, busy

# a body may have this many bytes for each token of the context: text needs about 4, JSON escapes of Chinese 6
BYTES_PER_TOKEN = 64
LEAST_BODY_BYTES = 16 << 20
# bodies in the making, all together and of one key
MEMORY_BODIES, KEY_BODIES = 16, 8
# a client that sends less than this a second, after the first `pause` seconds, is given up
SLOWEST_BYTES = 8 << 10
# more values than any conversation of a context has: each costs memory and time many times its bytes
LEAST_VALUES = 250_000
# larger ones are decoded entry by entry, so that other threads get their turn in between
PIECEWISE_BYTES = 1 << 20
# one escape of a JSON string: half of a surrogate pair, both halves, or anything else
_ESCAPES = re.compile(rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2})?|u[dD][c-fC-F]..|.)", re.S)
_WHOLE_PAIR = 12


def body_limit(context_length: int) -> int:
    """The largest body in bytes for a context of so many tokens."""
    return max(LEAST_BODY_BYTES, BYTES_PER_TOKEN * context_length)


class Bodies:
    """The bytes of bodies in the making. most: of one body."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._all, self._by_key = 0, Counter[str]()

    def take(self, key: str, size: int) -> None:
        """Count bytes that came. Raises ApiError 503 when all bodies, or 429 when those of `key`, hold too much."""
        if self._all + size > MEMORY_BODIES * self.most:
            raise ApiError(503, "too many large bodies at once; try again later", code="busy", headers=_RETRY)
        if key and self._by_key[key] + size > KEY_BODIES * self.most:
            raise busy("too many large bodies at once with this key; try again later")
        self._all += size
        self._by_key[key] += size

    def give_back(self, key: str, size: int) -> None:
        """They are no longer held."""
        self._all -= size
        self._by_key[key] -= size
        if not self._by_key[key]:
            del self._by_key[key]

    @asynccontextmanager
    async def reading(self, request: Request, key: str, pause: float) -> AsyncIterator[bytes | bytearray]:
        """The whole body, counted until the end of the `with` block.

        Raises ApiError: 413 for one larger than allowed, before it is read if it says so; 408 if nothing comes for
        `pause` seconds or all of it takes too long; 429 and 503 as `take`.
        """
        self._check_size(int(request.headers.get("content-length") or 0))
        body = bytearray()
        try:
            async for part in _parts(request, pause):
                self._check_size(len(body) + len(part))
                self.take(key, len(part))
                body += part
            # msgspec takes it as it is: no second copy
            yield body
        finally:
            self.give_back(key, len(body))

    def _check_size(self, size: int) -> None:
        if size > self.most:
            raise ApiError(413, f"body: at most {self.most:,} bytes are accepted", param="body", code="too_large")


_RETRY = {"retry-after": "2"}


async def _parts(request: Request, pause: float) -> AsyncIterator[bytes]:
    stream, began, size = aiter(request.stream()), time.monotonic(), 0
    while True:
        left = began + pause + size / SLOWEST_BYTES - time.monotonic()
        try:
            part = await asyncio.wait_for(anext(stream, None), min(pause, max(left, 0.0)))
        except TimeoutError:
            why = f"nothing came for {pause:g} seconds" if left > pause else "it comes too slowly"
            raise ApiError(408, f"body: {why}", param="body", code="timeout") from None
        if part is None:
            return
        size += len(part)
        yield part


def decode(body: bytes | bytearray, context_length: int) -> Any:
    """The value of a JSON text. Half of an escaped surrogate pair, as in a string cut within an emoji, is U+FFFD.

    Raises ApiError 400 for what is no JSON, or holds more values than requests have.
    """
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
