"""One HTTP connection, stricter than uvicorn's: heads have a time and a form, and what follows a refusal does not last.

A head with bare line feeds, folded lines or both ways to tell a body's length is read in different ways by different
programs, and so lets one client write requests in the name of another who shares a proxy's connection.
"""

import asyncio
import re
import time
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer, blank_line_regex
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20.0
MOST_HEADER_BYTES = 64 << 10
_LOOSE = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")


class HeaderClock(H11Protocol):
    """A connection is closed when a request's head is not complete `header_seconds` after the connection, or the first
    byte of a later request, came; and as long after an answer whose request's body does not end. Bodies that are waited
    for have a limit of their own (`body.Bodies`)."""

    header_seconds = HEADER_SECONDS
    _clock: asyncio.TimerHandle | None = None
    idle_since = 0.0

    def connection_made(self, transport: Any) -> None:
        self.conn._receive_buffer = StrictBuffer()
        super().connection_made(transport)
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
        """As in the base class; the rest of a body nobody wants has a limited time to pass."""
        self.idle_since = time.monotonic()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._start_clock()

    def send_400_response(self, msg: str) -> None:
        """As in the base class, but a bad request right behind one that is being answered just ends the connection."""
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


class StrictBuffer(ReceiveBuffer):
    """What h11 has received and not read. It refuses heads (and trailers) that are too long or loosely written."""

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
