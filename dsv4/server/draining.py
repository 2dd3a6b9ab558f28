"""uvicorn's server with a drain: it refuses new requests and lets running ones finish."""

import asyncio
import socket
import time
from collections.abc import Callable, MutableSet
from types import FrameType
from typing import Any, Protocol

import uvicorn

from dsv4.observe import log
from dsv4.server.backend import Backend
from dsv4.server.guard.connection import MOST_HEADER_BYTES, HeaderClock

# after the drain, the time in which streams may send their last event
LAST_WORDS_SECONDS = 3.0


class ListeningSocket(Protocol):
    """A listening socket that limits connections. connections: the open ones; made: those created so far."""

    connections: MutableSet[Any]
    made: int


class DrainingServer(uvicorn.Server):
    """A server that drains: after a signal it refuses new requests, and running ones have `drain` seconds. Those that
    are left end with an error. A second signal ends the waiting.

    ready: called when the server answers requests.
    """

    def __init__(
        self, app: Any, backend: Backend, listener: ListeningSocket, ready: Callable[[], None], drain: float
    ) -> None:
        class CountedConnection(HeaderClock):
            def connection_made(self, transport: Any) -> None:
                listener.made += 1
                super().connection_made(transport)

        # the application writes one line per request itself
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                ws="none",
                http=CountedConnection,
                log_level="error",
                access_log=False,
                h11_max_incomplete_event_size=MOST_HEADER_BYTES,
            )
        )
        self._backend, self._listener, self._ready, self._drain = backend, listener, ready, drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts the drain, the second one ends it."""
        self._captured_signals.append(sig)
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._listener.connections = self.server_state.connections
        asyncio.get_running_loop().set_exception_handler(_report)
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = self.server_state
        self._backend.admission.draining = True
        for server in self.servers:
            server.close()
        for sock in sockets or ():
            sock.close()
        for connection in list(state.connections):
            connection.shutdown()
        await self._finished(self._drain)
        if state.tasks:
            log("drain_over", requests=len(state.tasks), seconds=self._drain, hurried=self.force_exit)
            self._backend.generator.end()
            self.force_exit = False
            await self._finished(LAST_WORDS_SECONDS)
        for task in list(state.tasks):
            task.cancel()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=LAST_WORDS_SECONDS)
        for connection in list(state.connections):
            connection.transport.close()
        await asyncio.sleep(0)
        await self.lifespan.shutdown()

    async def _finished(self, seconds: float) -> None:
        """Wait until all answers are sent, for `seconds` at most, or until a second signal."""
        end = time.monotonic() + seconds
        while (self.server_state.tasks or self.server_state.connections) and not self.force_exit:
            if time.monotonic() >= end:
                return
            await asyncio.sleep(0.02)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error outside of any request, in one line."""
    error = context.get("exception")
    log("connection_trouble", message=context.get("message"), error=None if error is None else repr(error))
