"""Sessions of the bridge: each is one process of an allowed program, started for one client and ended after it."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.server.mcp.allowed import AllowedMcp, McpProgram
from dsv4.server.mcp.process import McpProcess, Message
from dsv4.server.wire.errors import ApiError, busy

MOST_PROCESSES = 16
# keys that can fill all places together
MOST_SHARES = 4
# a page that was closed without a word keeps its processes so long
IDLE_SECONDS = 900.0


@dataclass(slots=True, eq=False)
class McpSession:
    """A process for one client. key: the name of the API key that opened it, "" without keys."""

    id: str
    key: str
    process: McpProcess


class McpSessions:
    """Starts, finds and ends the processes of allowed programs, at most MOST_PROCESSES at once.

    keys: how many API keys share them. A single one may have all, several at most half, a third or a quarter each, so
    that busy processes of one key leave places for others. An idle process is ended after IDLE_SECONDS, and earlier
    when a new one needs its place: one of the same key if that has its share, else one of the key that has the most.
    """

    def __init__(self, allowed: AllowedMcp, keys: int = 1) -> None:
        self.allowed = allowed
        self._sharing = min(max(keys, 1), MOST_SHARES)
        self._sessions: dict[str, McpSession] = {}
        # those that are not over yet, also after their session is gone, each with the key that it runs for
        self._alive: dict[McpProcess, str] = {}
        # keys of processes that are being started
        self._starting: list[str] = []
        # by key and name: what a program wrote for one client is not for another
        self._last_lines: dict[tuple[str, str], list[str]] = {}
        self._sweeping: asyncio.Task[None] | None = None

    def program(self, name: str) -> McpProgram:
        """An allowed program. Raises ApiError 404."""
        found = self.allowed.programs.get(name)
        if found is None:
            known = ", ".join(self.allowed.programs) or "none"
            raise ApiError(404, f"no such MCP server: {name!r:.60}; allowed are {known}", code="mcp_not_found")
        return found

    def find(self, name: str, session_id: str, key: str) -> McpSession:
        """The session of a client. Raises ApiError 404 for one that is over or another client's: the client then opens
        a new one."""
        session = self._sessions.get(session_id)
        if session is None or session.key != key or session.process.program.name != name:
            why = self._last_lines.get((key, name))
            said = "; the server's last lines:\n" + "\n".join(why) if why else ""
            raise ApiError(404, f"this session of the MCP server {name!r} is over{said}", code="mcp_session_over")
        return session

    async def open(self, name: str, key: str, first: Message) -> tuple[McpSession, Message]:
        """A new session, and the answer of its process to the request `first`.

        Raises ApiError: 404 for a program that is not allowed, 429 if all places or those of the key are taken by busy
        processes, 502 if the program cannot be started or ends before it answers.
        """
        program = self.program(name)
        await self._make_room(key)
        self._starting.append(key)
        try:
            process = await McpProcess.start(program, self._over)
        except OSError as error:
            raise ApiError(502, f"the MCP server {name!r} cannot be started: {error}", code="mcp_failed") from error
        finally:
            self._starting.remove(key)
        self._alive[process] = key
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.ensure_future(self._sweep())
        try:
            answer = [message async for message in process.ask(first)][-1]
        except asyncio.CancelledError:
            await process.end("its client left")
            raise
        if "error" in answer:
            await process.end("its first answer was an error")
            raise ApiError(502, _told(answer["error"]), code="mcp_failed")
        session = McpSession(secrets.token_hex(16), key, process)
        self._sessions[session.id] = session
        return session, answer

    async def close(self, session: McpSession) -> None:
        """End a session and its process."""
        self._sessions.pop(session.id, None)
        await session.process.end("its client closed it")

    async def close_all(self) -> None:
        """End everything, when the server stops."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._sessions.clear()
        await asyncio.gather(*(process.end("the server stops") for process in self._alive))

    def listing(self, key: str) -> dict[str, Any]:
        """What the page of a client needs to know: the names that it may use, and why its last process ended."""
        programs: Sequence[dict[str, Any]] = [
            {"name": name, "kind": "stdio", "path": f"/mcp/{name}", "last_lines": self._last_lines.get((key, name), [])}
            for name in self.allowed.programs
        ]
        addresses = [{"name": name, "kind": "http", "url": url} for name, url in self.allowed.addresses.items()]
        return {"servers": [*programs, *addresses], "allowed_origins": list(self.allowed.origins)}

    async def _make_room(self, key: str) -> None:
        """Until there is a place for one more process of a key."""
        share = -(-MOST_PROCESSES // self._sharing)
        while True:
            taken = Counter([*self._alive.values(), *self._starting])
            idle = [session for session in self._sessions.values() if not session.process.busy]
            if taken[key] >= share:
                idle = [session for session in idle if session.key == key]
                whose = f"{share} MCP servers run for this key"
            elif taken.total() >= MOST_PROCESSES:
                whose = f"{MOST_PROCESSES} MCP servers run"
            else:
                return
            if not idle:
                raise busy(f"{whose} already, and all of them are busy; try again later")
            await self.close(min(idle, key=lambda session: (-taken[session.key], session.process.idle_since)))

    async def _sweep(self) -> None:
        """End idle processes while there are any."""
        while self._alive:
            await asyncio.sleep(min(IDLE_SECONDS / 4, 30.0))
            oldest = time.monotonic() - IDLE_SECONDS
            for session in list(self._sessions.values()):
                if not session.process.busy and session.process.idle_since < oldest:
                    await self.close(session)

    def _over(self, process: McpProcess) -> None:
        if (key := self._alive.pop(process, None)) is not None:
            self._last_lines[key, process.program.name] = [f"{process.over}", *process.tail]
        for session in [session for session in self._sessions.values() if session.process is process]:
            del self._sessions[session.id]


def _told(error: Any) -> str:
    return str(error.get("message")) if isinstance(error, dict) else repr(error)
