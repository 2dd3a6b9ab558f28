"""A limit on how long a client may take over the head of a request: connections that dribble hold no place for ever."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20.0


class HeaderClock(H11Protocol):
    """uvicorn's HTTP protocol; a connection is closed when a request's head is not complete `header_seconds` after the
    connection, or the first byte of a later request, came. Bodies have a limit of their own (`safety.read_body`)."""

    header_seconds = HEADER_SECONDS
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._clock = self.loop.call_later(self.header_seconds, self._too_slow)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._waits_for_head():
            self._stop_clock()
        elif self._clock is None and self.conn.trailing_data[0]:
            self._clock = self.loop.call_later(self.header_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def _waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _too_slow(self) -> None:
        self._clock = None
        if self._waits_for_head() and not self.transport.is_closing():
            self.transport.close()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
