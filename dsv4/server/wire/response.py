"""Responses that end at once when their client disconnects: a stream of events, and a JSON answer that may be slow."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from dsv4.server.wire.json import to_json
from dsv4.server.wire.sse import KEEP_ALIVE

KEEP_ALIVE_SECONDS = 10.0
# an extension of the scope: takes parts of the body once the head was sent, around all layers between application and
# connection, which only look at heads; not there for answers that the server has to frame itself
BODY_WRITER = "dsv4.body_writer"

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before its answer was ready."""


async def race_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. If the client disconnects first, `work` is cancelled and ClientGone is raised.

    The request body must have been read: the next message of `receive` is the disconnect.
    """
    running = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        raise ClientGone
    finally:
        await _cancel(running, leaving)


def json_response(value: object, status: int = 200) -> Response:
    """A JSON response."""
    return Response(to_json(value), status, media_type="application/json")


class OpenEndedResponse(Response):
    """A 200 whose length is unknown when its head is sent."""

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(headers=headers)
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    def head(self, *more: tuple[bytes, bytes]) -> Message:
        """The ASGI message with status and headers, `more` included."""
        return {"type": "http.response.start", "status": self.status_code, "headers": [*self.raw_headers, *more]}


class EventStream(OpenEndedResponse):
    """A `text/event-stream` response over a generator of whole events.

    After every `seconds` without an event the bytes of `keep_alive()` are sent, also during a long prefill. The
    generator is closed in every case: at its end, on an error, when the client disconnects. Then `closing` is called,
    also if the generator never ran.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        keep_alive: Callable[[], bytes] = lambda: KEEP_ALIVE,
        seconds: float = KEEP_ALIVE_SECONDS,
        closing: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        # a proxy that buffers would hold back the stream until its end
        super().__init__({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events, self._keep_alive, self._seconds, self._closing = events, keep_alive, seconds, closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire = _Wire(send)
        try:
            await send(self.head())
            wire.begun(scope)
        except BaseException:
            await self._close()
            raise
        ticking = asyncio.ensure_future(wire.tick(self._seconds, self._keep_alive))
        try:
            await race_disconnect(receive, self._pump(wire))
        finally:
            await _cancel(ticking)
            await self._close()

    async def _close(self) -> None:
        await self._events.aclose()
        if self._closing is not None:
            await self._closing()

    async def _pump(self, wire: "_Wire") -> None:
        async for chunk in self._events:
            await wire.write(chunk)
        await wire.write(b"", more=False)


class PatientResponse(OpenEndedResponse):
    """A JSON answer that may be slow: a line break is sent after every `seconds` of waiting.

    An error of `work` before the first line break is raised, so that it can have its own status. After it, `failed`
    turns the error into the body. When the client disconnects, `work` is cancelled and ClientGone is raised.
    """

    media_type = "application/json"

    def __init__(
        self, work: Coroutine[Any, Any, object], failed: Callable[[Exception], object], seconds: float
    ) -> None:
        super().__init__()
        self._work, self._failed, self._seconds = work, failed, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        running = asyncio.ensure_future(self._work)
        leaving = asyncio.ensure_future(_disconnected(receive))
        started = False
        try:
            while True:
                await asyncio.wait({running, leaving}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    break
                if leaving.done():
                    raise ClientGone
                if not started:
                    await send(self.head())
                started = True
                await send({"type": "http.response.body", "body": b"\n", "more_body": True})
            error = running.exception()
            if isinstance(error, Exception) and started:
                body = to_json(self._failed(error))
            else:
                body = to_json(running.result())
            if not started:
                await send(self.head((b"content-length", str(len(body)).encode())))
            await send({"type": "http.response.body", "body": body})
        finally:
            await _cancel(running, leaving)


class _Wire:
    """The sending side, with the time of the last write."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._body: Callable[[bytes], Awaitable[None]] | None = None
        self._last = time.monotonic()

    def begun(self, scope: Scope) -> None:
        """The head was sent: parts of the body go to the connection directly if it takes them (`BODY_WRITER`)."""
        self._body = scope.get("extensions", {}).get(BODY_WRITER)

    async def write(self, chunk: bytes, *, more: bool = True) -> None:
        self._last = time.monotonic()
        if self._body is not None and more:
            await self._body(chunk)
        else:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def tick(self, seconds: float, keep_alive: Callable[[], bytes]) -> None:
        """Write `keep_alive()` after every `seconds` without a write."""
        while True:
            quiet = time.monotonic() - self._last
            if quiet >= seconds:
                await self.write(keep_alive())
                quiet = 0.0
            await asyncio.sleep(seconds - quiet)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
