"""One MCP server as a child process: JSON-RPC messages, one a line, over its standard input and output."""

import asyncio
import contextlib
import os
import signal
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Self

import msgspec

from dsv4.observe import log, printable
from dsv4.server.mcp.allowed import McpProgram
from dsv4.server.wire.json import to_json

MOST_LINE_BYTES = 4 << 20
# messages of the server that wait for a request's stream; further notifications are dropped
MOST_WAITING = 64
TAIL_LINES, TAIL_COLUMNS = 12, 300
# after the end of its input a server may end by itself; then it is told to, then killed
END_SECONDS = 1.0
EXIT_POLL_SECONDS = 0.05
FAILED, TIMED_OUT = -32000, -32001

Message = dict[str, Any]


class McpProcess:
    """A started server. `ask` and `tell` send it messages; `end` ends it and what it started.

    tail: its last lines for people (standard error, and output that is no message). over: why it ended, None while it
    runs. idle_since: when it owed its last answer. ended: called once, when it is over.
    """

    def __init__(self, program: McpProgram, process: Process, ended: Callable[["McpProcess"], None]) -> None:
        self.program, self._process, self._ended = program, process, ended
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.over: str | None = None
        self.idle_since = time.monotonic()
        # by the id of the request; the last one also gets what belongs to no request
        self._waiting: dict[object, asyncio.Queue[Message]] = {}
        self._unread: deque[Message] = deque(maxlen=MOST_WAITING)
        self._writing = asyncio.Lock()
        self._watching = [asyncio.ensure_future(work) for work in (self._read(), self._read_errors(), self._watch())]
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, program: McpProgram, ended: Callable[["McpProcess"], None]) -> Self:
        """Start the program. Raises OSError if the system cannot."""
        process = await asyncio.create_subprocess_exec(
            *program.command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            cwd=program.folder,
            env=dict(program.environment),
            limit=MOST_LINE_BYTES,
            # a group of its own, so that Ctrl-C does not reach it and all that it starts can be ended
            start_new_session=True,
        )
        log("mcp_started", server=program.name, pid=process.pid)
        return cls(program, process, ended)

    @property
    def busy(self) -> bool:
        """Whether it owes an answer."""
        return bool(self._waiting)

    @property
    def last_words(self) -> str:
        """Its last lines as the end of an error's text."""
        return "; its last lines:\n" + "\n".join(self.tail) if self.tail else ""

    def knows(self, request_id: object) -> bool:
        """Whether a request with this id is unanswered."""
        return request_id in self._waiting

    async def ask(self, request: Message) -> AsyncGenerator[Message, None]:
        """Send a request; what the server says until the answer, and the answer, which is the last message.

        A server that ends, or is silent for `program.seconds`, gives an answer with an error.
        """
        number, queue = request["id"], asyncio.Queue[Message]()
        if self.knows(number):
            yield failure(number, FAILED, f"a request with the id {number!r:.60} is not answered yet")
            return
        while self._unread:
            queue.put_nowait(self._unread.popleft())
        self._waiting[number] = queue
        try:
            if self.over is not None or not await self.tell(request):
                yield self._failure(number)
                return
            while True:
                try:
                    message = await asyncio.wait_for(queue.get(), self.program.seconds)
                except TimeoutError:
                    yield await self._give_up(number)
                    return
                yield message
                if message.get("id") == number and "method" not in message:
                    return
        finally:
            del self._waiting[number]
            self.idle_since = time.monotonic()

    async def tell(self, message: Message) -> bool:
        """Send a message without waiting for an answer. Whether the server took it; one that does not read is ended."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            async with asyncio.timeout(self.program.seconds), self._writing:
                stdin.write(to_json(message) + b"\n")
                await stdin.drain()
        except TimeoutError:
            self._finish(f"it read no input for {self.program.seconds:g} seconds")
        except (OSError, RuntimeError):
            # the reader of its output finds out why
            await asyncio.wait([self._watching[2]], timeout=2 * END_SECONDS)
            self._finish("it closed its input")
        return self.over is None

    async def end(self, why: str = "it was ended") -> None:
        """End it: close its input, then SIGTERM, then SIGKILL, to all processes of its group."""
        self._finish(why)
        assert self._ending is not None
        await asyncio.shield(self._ending)

    def _finish(self, why: str) -> None:
        """It is over, whoever noticed first: requests get their errors, and the processes of the group end."""
        if self.over is not None:
            return
        self.over = why
        for number, queue in self._waiting.items():
            queue.put_nowait(self._failure(number))
        self._ending = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        process, current = self._process, self._watching
        assert process.stdin is not None
        process.stdin.close()
        for wait, signal_ in ((END_SECONDS, signal.SIGTERM), (END_SECONDS, signal.SIGKILL)):
            await self._exited(wait)
            # also after its own end: what it started may still run
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal_)
        await self._exited(60.0)
        for task in current:
            task.cancel()
        await asyncio.gather(*current, return_exceptions=True)
        # a process that left the group may still hold the pipes, and asyncio has no public way to let go of them
        process._transport.close()  # type: ignore[attr-defined]
        log("mcp_ended", server=self.program.name, pid=process.pid, status=process.returncode, why=self.over)
        self._ended(self)

    def _failure(self, number: object) -> Message:
        return failure(number, FAILED, f"the MCP server {self.program.name!r} is over: {self.over}{self.last_words}")

    async def _give_up(self, number: object) -> Message:
        why = f"no answer for {self.program.seconds:g} seconds"
        params = {"requestId": number, "reason": why}
        await self.tell({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
        return failure(number, TIMED_OUT, f"the MCP server {self.program.name!r} gave {why}{self.last_words}")

    async def _read(self) -> None:
        """Pass on what the server writes until it ends."""
        stdout = self._process.stdout
        assert stdout is not None
        why = "it closed its output"
        try:
            while line := await stdout.readline():
                await self._take(line)
        except ValueError:
            why = f"it wrote a line of more than {MOST_LINE_BYTES >> 20} MiB"
        # when it ended, `_watch` says how
        if not await self._exited(END_SECONDS):
            self._finish(why)

    async def _watch(self) -> None:
        """Notice its end, also when a process that it started keeps the pipes open."""
        while not await self._exited(60.0):
            pass
        # what it wrote last is an answer, or explains the end
        await asyncio.wait(self._watching[:2], timeout=END_SECONDS)
        self._finish(f"it ended with status {self._process.returncode}")

    async def _exited(self, seconds: float) -> bool:
        """Whether the process ends within a time. asyncio's own `wait` also waits for the pipes."""
        end = time.monotonic() + seconds
        while self._process.returncode is None and time.monotonic() < end:
            await asyncio.sleep(EXIT_POLL_SECONDS)
        return self._process.returncode is not None

    async def _read_errors(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while part := await stderr.read(1 << 14):
            for line in part.decode(errors="replace").splitlines():
                self._keep(line)

    def _keep(self, line: str) -> None:
        if text := printable(line[:TAIL_COLUMNS]).strip():
            self.tail.append(text)

    async def _take(self, line: bytes) -> None:
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError):
            value = None
        messages = value if isinstance(value, list) else [value]
        if not all(isinstance(message, dict) for message in messages):
            # a banner, or a print for debugging
            self._keep(line.decode(errors="replace"))
            return
        for message in messages:
            if message.get("method") == "ping" and "id" in message:
                await self.tell({"jsonrpc": "2.0", "id": message["id"], "result": {}})
            elif "method" in message:
                self._offer(message)
            elif (queue := self._waiting.get(_hashable(message.get("id")))) is not None:
                queue.put_nowait(message)

    def _offer(self, message: Message) -> None:
        """Give a request or notification of the server to the last stream, or keep it for the next one."""
        queues = list(self._waiting.values())
        if not queues:
            self._unread.append(message)
        elif queues[-1].qsize() < MOST_WAITING:
            queues[-1].put_nowait(message)


def failure(number: object, code: int, text: str) -> Message:
    """An answer of JSON-RPC that says what went wrong."""
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": text}}


def _hashable(value: object) -> object:
    return None if isinstance(value, list | Mapping) else value
