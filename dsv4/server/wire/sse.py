"""Server-sent events as raw bytes, and a response that notices at once when its client goes away."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_SECONDS = 10.0

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before its answer was ready."""


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


def event(value: object) -> bytes:
    """One `data:` event. JSON holds no raw newline and here no other separator, so one line is always enough."""
    body = json_line(value)
    return b"data: " + body + b"\n\n"


def named_event(name: str, fields: Mapping[str, object]) -> bytes:
    """One event with its name, which its data repeat as `type`."""
    return b"event: " + name.encode() + b"\n" + event({"type": name, **fields})


async def race_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, unless the client leaves first: then `work` is cancelled and ClientGone raised.

    The request body must have been read: everything `receive` still gives is the disconnect.
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


class EventStream(Response):
    """A `text/event-stream` response over a generator of whole events.

    While nothing is sent for `seconds` of wall-clock time the bytes of `keep_alive()` go out, also during a long
    prefill. The generator is closed in every case: at its end, on an error, when the client disconnects; then
    `closing` is called, also if the generator never ran.
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
        self.status_code = 200
        self.background = None
        self.body = b""
        # a proxy that buffers would hold back the stream until its end
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events, self._keep_alive, self._seconds, self._closing = events, keep_alive, seconds, closing

    def init_headers(self, headers: Any = None) -> None:
        """As the base class, but without a content length."""
        super().init_headers(headers)
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire = _Wire(send)
        start: Message = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        try:
            await send(start)
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


class PatientResponse(Response):
    """A JSON answer that takes its time: a line break goes out after every `seconds` of waiting.

    Until the first one, errors of `work` are raised, and so can still have a status of their own; later ones become
    the body, by `failed`. `work` is cancelled when the client disconnects, and ClientGone raised.
    """

    media_type = "application/json"

    def __init__(
        self, work: Coroutine[Any, Any, object], failed: Callable[[Exception], object], seconds: float
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers()
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._work, self._failed, self._seconds = work, failed, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        running = asyncio.ensure_future(self._work)
        leaving = asyncio.ensure_future(_disconnected(receive))
        head: Message = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        started = False
        try:
            while True:
                await asyncio.wait({running, leaving}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    break
                if leaving.done():
                    raise ClientGone
                if not started:
                    await send(head)
                started = True
                await send({"type": "http.response.body", "body": b"\n", "more_body": True})
            error = running.exception()
            if isinstance(error, Exception) and started:
                body = to_json(self._failed(error))
            else:
                body = to_json(running.result())
            if not started:
                size = str(len(body)).encode()
                await send({**head, "headers": [*self.raw_headers, (b"content-length", size)]})
            await send({"type": "http.response.body", "body": body})
        finally:
            await _cancel(running, leaving)


class _Wire:
    """The sending side, with the time of the last write."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._last = time.monotonic()

    async def write(self, chunk: bytes, *, more: bool = True) -> None:
        self._last = time.monotonic()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def tick(self, seconds: float, keep_alive: Callable[[], bytes]) -> None:
        """Write something whenever nothing was written for `seconds`."""
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
