"""Reads the body of a request within limits of size, time and memory.

The bytes of a body count while it arrives and until its request is parsed, against a limit of its key and a limit of
all keys together.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from dsv4.server.wire.errors import ApiError, busy

# a body may have this many bytes for each token of the context: text needs about 4, JSON escapes of Chinese 6
BYTES_PER_TOKEN = 64
LEAST_BODY_BYTES = 16 << 20
# bodies of the largest size that may be held at once, of all keys and of one
MEMORY_BODIES, KEY_BODIES = 16, 8
# bytes per second, after the first `pause` seconds; the request of a slower client ends
SLOWEST_BYTES = 8 << 10


def body_limit(context_length: int) -> int:
    """The largest body in bytes for a context of so many tokens."""
    return max(LEAST_BODY_BYTES, BYTES_PER_TOKEN * context_length)


class Bodies:
    """Counts the bytes of all bodies that are held. most: the largest body."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._all, self._by_key = 0, Counter[str]()

    def take(self, key: str, size: int) -> None:
        """Count bytes that arrived. Raises ApiError 503 when all bodies, or 429 when those of `key`, hold too many."""
        if self._all + size > MEMORY_BODIES * self.most:
            raise ApiError(503, "too many large bodies at once; try again later", code="busy", headers=_RETRY)
        if key and self._by_key[key] + size > KEY_BODIES * self.most:
            raise busy("too many large bodies at once with this key; try again later")
        self._all += size
        self._by_key[key] += size

    def give_back(self, key: str, size: int) -> None:
        """Stop counting bytes that are no longer held."""
        self._all -= size
        self._by_key[key] -= size
        if not self._by_key[key]:
            del self._by_key[key]

    @asynccontextmanager
    async def reading(self, request: Request, key: str, pause: float) -> AsyncIterator[bytes | bytearray]:
        """The whole body, counted until the end of the `with` block.

        Raises ApiError: 413 for a body larger than allowed, before reading if its length is in the head; 408 if no byte
        arrives for `pause` seconds or the whole takes too long; 429 and 503 as `take`.
        """
        self._check_size(int(request.headers.get("content-length") or 0))
        body = bytearray()
        try:
            async for part in _parts(request, pause):
                self._check_size(len(body) + len(part))
                self.take(key, len(part))
                body += part
            # msgspec decodes a bytearray without a copy
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
