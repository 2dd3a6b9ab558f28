"""Threads for work that grows with a request, so that no stream and no health check waits for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from starlette.requests import Request

from dsv4.server.wire.response import race_disconnect

# a request of fewer bytes takes less time than the start of a thread, unless it holds one of these words; an escaped
# letter may hide one
SHORT_BYTES = 2000
SLOW_WORDS = (b'"tools"', b"schema", b"json_object", b"grammar", b"previous_response", b"item_reference", b"\\u00")
# larger requests run one after another: in parallel they would share Python's lock and hold several decoded bodies
LARGE_BYTES = 256 << 10

T = TypeVar("T")


class Workers:
    """The threads of one server: a few for usual requests, one for large ones."""

    def __init__(self) -> None:
        self._usual = ThreadPoolExecutor(4, "dsv4-request")
        self._large = ThreadPoolExecutor(1, "dsv4-large-request")

    async def run(self, request: Request, body: bytes | bytearray, work: Callable[[], T]) -> T:
        """The result of `work`, which reads `body`. Raises the errors of `work`, and ClientGone if the client
        disconnects first."""
        if len(body) < SHORT_BYTES and not any(word in body for word in SLOW_WORDS):
            return work()
        pool = self._large if len(body) >= LARGE_BYTES else self._usual
        return await race_disconnect(request.receive, _in(pool, work))


async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, partial(work))
