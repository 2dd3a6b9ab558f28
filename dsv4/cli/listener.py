"""The listening socket of `dsv4 serve`, and the largest number of its connections. Standard library only."""

import errno
import os
import resource
import socket
import time
from collections.abc import MutableSet
from pathlib import Path
from typing import Any

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
MOST_CONNECTIONS = 1 << 16
# descriptors that stay free for files: a share of the process's limit, and the least number
SPARE, LEAST_SPARE = 1 / 16, 16
# a new connection will soon send its request
LEAST_IDLE_SECONDS = 0.5
# the share of idle connections that is closed when there is no room for another
CLOSED_AT_ONCE = 1 / 8


class Listener(socket.socket):
    """A listening socket that accepts no connection for which its process has no room.

    The oldest idle connections are closed for a new one. When none is idle, or the system has no descriptors, `accept`
    fails like a full system, at most once a second: asyncio then waits a second. Otherwise it would try again at once,
    as often as the backlog is long.

    most: the largest number of connections; None = no limit. connections: the open ones; each has `transport`,
    `idle_since` and `waits_for_head()`. made: the number of accepted connections that have been added to `connections`.
    """

    def __init__(self, family: int = socket.AF_INET) -> None:
        # with this protocol asyncio sends small writes at once; else each answer waits for a delayed acknowledgement
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.most: int | None = None
        self.connections: MutableSet[Any] = set()
        self._given = self._failed_at = 0.0
        self.made = 0

    def accept(self) -> tuple[socket.socket, Any]:
        """As in the base class. Raises OSError or BlockingIOError when there is no room."""
        if self.most is not None and len(self.connections) + self._given - self.made >= self.most:
            if self._make_room() or self._given > self.made:
                raise BlockingIOError(errno.EAGAIN, "old connections are being closed")
            self._fail(OSError(errno.EMFILE, f"{len(self.connections)} connections are open and none is idle"))
        try:
            connection = super().accept()
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._fail(error)
            raise
        self._given += 1
        return connection

    def _make_room(self) -> bool:
        """Close some idle connections, the oldest first. Returns whether any connection is closing."""
        closing = [one for one in self.connections if one.transport.is_closing()]
        latest = time.monotonic() - LEAST_IDLE_SECONDS
        idle = [one for one in self.connections if one.waits_for_head() and one.idle_since < latest]
        idle = [one for one in idle if not one.transport.is_closing()]
        idle.sort(key=lambda one: one.idle_since)
        going = idle[: max(1, int(len(idle) * CLOSED_AT_ONCE))]
        for one in going:
            one.transport.abort()
        return bool(closing or going)

    def _fail(self, error: OSError) -> None:
        now = time.monotonic()
        if now < self._failed_at + 0.5:
            raise BlockingIOError(errno.EAGAIN, "no room just now")
        self._failed_at = now
        raise error


def open_listener(host: str, port: int) -> Listener:
    """A listening socket. Raises ValueError for a port outside [0, 65535], OSError for an address that is in use or not
    available."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be in [0, 65535], got {port}")
    listener = Listener(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # this reserves the port: two sockets may bind to it while neither listens
        listener.listen()
    except (OSError, UnicodeError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port} on {host} is in use; choose another one with --port") from error
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise OSError(f"cannot listen on {host} port {port}: {why}") from error
    return listener


def connection_limit() -> int:
    """The number of connections for which the process has descriptors, beside its open files and a reserve."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    folder = Path("/proc/self/fd")
    opened = len(os.listdir(folder)) if folder.is_dir() else LEAST_SPARE
    return max(4, min(MOST_CONNECTIONS, most - opened - max(LEAST_SPARE, int(most * SPARE))))
