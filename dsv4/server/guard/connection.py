"""One HTTP connection with limits that uvicorn lacks: the time and form of heads, and the time of refused bodies.

Programs read a head with bare line feeds, folded lines or two body lengths in different ways. Through a proxy that
shares a connection, such a head lets one client send requests in the name of another.
"""

import asyncio
import re
import time
from typing import Any
from weakref import WeakKeyDictionary

import h11
from h11._receivebuffer import ReceiveBuffer, blank_line_regex
from h11._writers import ChunkedWriter
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from dsv4.server.wire.response import BODY_WRITER

HEADER_SECONDS = 20.0
MOST_HEADER_BYTES = 64 << 10
MOST_JOINED_BYTES = 64 << 10
_LOOSE = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")


class HeaderClock(H11Protocol):
    """Closes the connection when a head is not complete in time: `header_seconds` after the connection was made, or
    after the first byte of a later request. The rest of a body has the same time after its request was answered. A body
    that a route reads has a limit of its own (`wire.body.Bodies`)."""

    header_seconds = HEADER_SECONDS
    _clock: asyncio.TimerHandle | None = None
    idle_since = 0.0

    def connection_made(self, transport: Any) -> None:
        self.conn._receive_buffer = StrictBuffer()
        super().connection_made(transport)
        self.app = _DirectBody(self, self.app)
        self.idle_since = time.monotonic()
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.waits_for_head():
            self._stop_clock()
        elif self.conn.trailing_data[0] or self.conn.their_state is h11.SEND_BODY:
            self._start_clock()
        else:
            self._stop_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """As in the base class; also limits the time of the rest of an unread body."""
        self.idle_since = time.monotonic()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._start_clock()

    def send_400_response(self, msg: str) -> None:
        """As in the base class, but a bad request behind one that is being answered closes the connection without an
        answer."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()

    def waits_for_head(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _too_slow(self) -> None:
        self._clock = None
        if self.waits_for_head() and not self.transport.is_closing():
            self.transport.close()

    def _start_clock(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(self.header_seconds, self._too_slow)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


class _DirectBody:
    """The application behind one connection, whose chunked bodies go to the socket without h11.

    For each token of a stream, h11 and uvicorn took as much time as writing to the socket.
    """

    def __init__(self, connection: HeaderClock, app: Any) -> None:
        self._connection, self._app = connection, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # a connection has one cycle at a time, and this one has just begun
        cycle = self._connection.cycle
        body: _ChunkedBody | None = None

        extensions = scope.setdefault("extensions", {})

        async def direct(message: Message) -> None:
            nonlocal body
            if body is not None:
                if message.get("more_body"):
                    await body.write(message["body"])
                    return
                extensions.pop(BODY_WRITER, None)
                await body.end()
                body = None
            await send(message)
            # h11 has chosen the form of the body with its head; an answer to HEAD has no chunks
            if message["type"] == "http.response.start" and isinstance(cycle.conn._writer, ChunkedWriter):
                body = _ChunkedBody(cycle)
                extensions[BODY_WRITER] = body.write

        try:
            await self._app(scope, receive, direct)
        finally:
            # uvicorn closes the connection of a body without an end, and what is written afterwards is lost
            if body is not None:
                body.flush()


class _TurnEnd:
    """What is to be sent at the end of this turn of an event loop: one call for all connections, because a call for
    each takes as long as framing what it sends."""

    def __init__(self) -> None:
        self._bodies: list[_ChunkedBody] = []

    def add(self, body: "_ChunkedBody") -> None:
        """Flush `body` at the end of this turn."""
        if not self._bodies:
            asyncio.get_running_loop().call_soon(self._flush)
        self._bodies.append(body)

    def _flush(self) -> None:
        """Each on its own: one connection that fails keeps nothing from the others."""
        bodies, self._bodies = self._bodies, []
        for body in bodies:
            try:
                body.flush()
            except Exception as error:
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a part of a body was not sent", "exception": error}
                )


_TURN_ENDS: "WeakKeyDictionary[asyncio.AbstractEventLoop, _TurnEnd]" = WeakKeyDictionary()


class _ChunkedBody:
    """A body in HTTP chunks. What is written in one turn of the event loop is one chunk, and is sent at its end: an
    engine may have several tokens for a turn."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._turn = _TURN_ENDS.setdefault(asyncio.get_running_loop(), _TurnEnd())
        self._parts: list[bytes] = []
        self._size = 0
        self._ended = False

    async def write(self, part: bytes) -> None:
        """As `cycle.send` with a part of the body. It waits while the client does not read."""
        await self._room()
        if self._ended:
            return
        if not self._parts:
            self._turn.add(self)
        self._parts.append(part)
        self._size += len(part)
        if self._size >= MOST_JOINED_BYTES:
            self.flush()

    async def end(self) -> None:
        """Send what was written. What another task writes from here on, or waits to write, is dropped: behind the end
        of the body it would be the beginning of the next answer."""
        await self._room()
        self._ended = True
        self.flush()

    async def _room(self) -> None:
        flow = self._cycle.flow
        if flow.write_paused and not self._cycle.disconnected:
            await flow.drain()

    def flush(self) -> None:
        """Send what was written."""
        joined, self._size = b"".join(self._parts), 0
        self._parts.clear()
        # an empty chunk would end the body
        if joined and not self._cycle.disconnected:
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(joined), joined))


class StrictBuffer(ReceiveBuffer):
    """The bytes that h11 has received and not parsed. Refuses heads (and trailers) that are too long or malformed."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """As in the base class. Raises LocalProtocolError, which becomes an answer 400."""
        if self._data[:1] == b"\n":
            raise h11.LocalProtocolError("a line must end in CR LF")
        if self._data[:2] != b"\r\n":
            match = blank_line_regex.search(self._data, self._multiple_lines_search)
            end = len(self._data) if match is None else match.end()
            if end > MOST_HEADER_BYTES:
                raise h11.LocalProtocolError(f"a head may have {MOST_HEADER_BYTES} bytes", error_status_hint=431)
            if match is not None and _LOOSE.search(self._data, 0, end):
                raise h11.LocalProtocolError("a line must end in CR LF, and none be folded")
        return super().maybe_extract_lines()
