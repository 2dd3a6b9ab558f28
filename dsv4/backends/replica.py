"""One server behind a RemoteGenerator: its requests, and whether it lives."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec

from dsv4.backends.http import HttpClient, HttpResponse, ServerLostError
from dsv4.backends.protocol import Reader, RefusedError, ServerProtocol, ServerRequest
from dsv4.generation import TokenEvent
from dsv4.observe import log

# seconds between two looks at a server that is lost: the first, and the longest
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
LOOK_SECONDS = 5.0  # a server that does not tell its health within them is not used
ASK_SECONDS = 20.0  # nor one that does not tell its model and tokenizer within these


@dataclass(slots=True)
class Replica:
    """number: its place among the servers. ask: asks the server what it is, and gives how it is spoken to; raises
    ServerLostError, and ValueError where it cannot be used. None = it stays as it is. running: requests that it is
    answering for us. problem: why it counts as lost, None = it lives."""

    number: int
    client: HttpClient
    protocol: ServerProtocol
    ask: Callable[[], Awaitable[ServerProtocol]] | None = None
    running: int = 0
    problem: str | None = None
    wait: float = FIRST_WAIT  # seconds until the look after the next failure
    next_look: float = 0.0  # in the time of time.monotonic

    @property
    def name(self) -> str:
        """For messages to users, which must not hold addresses inside the operator's network."""
        return f"engine {self.number + 1}"

    async def events(self, request: ServerRequest) -> AsyncGenerator[TokenEvent, None]:
        """The events of one request; the last carries `finish`. Closing it closes the connection, which ends the
        server's work. Raises RefusedError; ServerLostError, also where it counts as lost; ValueError for a field that
        the server cannot do."""
        if self.problem is not None:  # it may be there with another model
            raise ServerLostError(self.problem)
        body = self.protocol.body(request)
        self.running += 1
        try:
            last: TokenEvent | None = None
            async with self.client.request("POST", self.protocol.path, body) as response:
                if response.status != 200:
                    raise refused(response.status, await response.body())
                # NOTE: read to its end, or the connection could not be used again and the server would count an abort
                async with aclosing(self._read(response, self.protocol.reader(request))) as events:
                    async for event in events:
                        if event.finish is not None:
                            last = event
                        else:
                            yield event
            if last is None:
                raise ServerLostError(f"{self.client.url} ended an answer without a reason")
        finally:
            self.running -= 1
        yield last

    async def _read(self, response: HttpResponse, reader: Reader) -> AsyncGenerator[TokenEvent, None]:
        try:
            async with aclosing(response.lines()) as lines:
                async for line in lines:
                    if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                        for event in reader.feed(data):
                            yield event
            for event in reader.end():
                yield event
        except (ValueError, msgspec.MsgspecError) as error:
            raise ServerLostError(f"{self.client.url} answered what is not understood: {error}") from error

    def lost(self, error: Exception) -> bool:
        """A request to it failed. Returns whether it lived until now: what runs at the time of a loss fails as well,
        and is the same loss."""
        if self.problem is not None:
            return False
        self._look_later(str(error))
        return True

    async def meaning(self, error: RefusedError | ServerLostError) -> RefusedError | ServerLostError:
        """What a failed request says of the server: one that fails by itself (500) and is unhealthy then is lost. vLLM
        answers so when the process of its engine dies, shortly before it ends."""
        if isinstance(error, RefusedError) and error.status == 500:
            problem = await self._unhealthy()
            return error if problem is None else ServerLostError(problem)
        return error

    async def look(self) -> bool:
        """Whether it lives now, by its health route, and is still what it has to be: a server that comes late, or back,
        may have been started with another model. If not, it is looked at again after a while that grows with each look;
        looks at the same time count as one."""
        due = self.next_look
        problem = await self._found_wrong()
        if problem is None:
            self.problem, self.wait, self.next_look = None, FIRST_WAIT, 0.0
        elif self.next_look == due:
            self._look_later(problem)
        return self.problem is None

    def _look_later(self, problem: str) -> None:
        self.problem = problem
        self.next_look = time.monotonic() + self.wait
        self.wait = min(2 * self.wait, LONGEST_WAIT)

    async def _unhealthy(self) -> str | None:
        """What its health route says against it, None for nothing."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                status, _ = await self.client.get("/health")
        except TimeoutError:
            return f"{self.client.url}/health does not answer within {LOOK_SECONDS:g} s"
        except ServerLostError as error:
            return str(error)
        return None if status == 200 else f"{self.client.url}/health answers {status}"

    async def _found_wrong(self) -> str | None:
        """Why it cannot be used, None if it can."""
        if (problem := await self._unhealthy()) is not None:
            return problem
        try:
            if self.ask is not None:
                async with asyncio.timeout(ASK_SECONDS):
                    self.protocol = await self.ask()
        except TimeoutError:
            return f"{self.client.url} does not tell what it is within {ASK_SECONDS:g} s"
        except ServerLostError as error:
            return str(error)
        except ValueError as error:
            if str(error) != self.problem:
                log("engine_refused", engine=self.client.url, error=str(error))
            return str(error)
        return None


def refused(status: int, body: bytes) -> RefusedError:
    """The refusal in the body of an error, in the forms of FastAPI and OpenAI."""
    try:
        value: Any = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        value = body[:300].decode(errors="replace")
    while isinstance(value, dict):
        value = next((value[name] for name in ("error", "message", "detail") if name in value), str(value))
    return RefusedError(status, value if isinstance(value, str) else str(value)[:300])
