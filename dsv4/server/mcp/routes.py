"""`/mcp/NAME`: an allowed program as a streamable HTTP server of MCP, for pages of this server.

A POST carries one JSON-RPC message. `initialize` starts a process and opens a session, whose id the client sends with
every further message; a request is answered by a stream of events that ends with the answer; DELETE ends the session.
GET is 405: what belongs to no request comes with the next stream.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dsv4.server.mcp.process import McpProcess, Message
from dsv4.server.mcp.sessions import McpSessions
from dsv4.server.wire.body import Bodies
from dsv4.server.wire.errors import ApiError, invalid
from dsv4.server.wire.json import decode
from dsv4.server.wire.names import short_name
from dsv4.server.wire.response import EventStream, json_response, race_disconnect
from dsv4.server.wire.sse import event

Traced = Callable[[str, Mapping[str, str]], AbstractContextManager[None]]
SESSION = "mcp-session-id"
# arguments of a call, for which a model wrote the text
MOST_BODY_BYTES = 4 << 20


class McpRoutes:
    """The routes of one server's bridge. body_seconds, keep_alive: as in `Settings`. traced: what runs around a call of
    a tool, with the tool's name and the headers of the request; None = nothing does."""

    def __init__(
        self,
        sessions: McpSessions,
        bodies: Bodies,
        *,
        body_seconds: float,
        keep_alive: float,
        traced: Traced | None = None,
    ) -> None:
        self._traced = traced
        self._sessions, self._bodies = sessions, bodies
        self._body_seconds, self._keep_alive = body_seconds, keep_alive

    def routes(self) -> list[Route]:
        """The list of what is allowed, and one route for all names."""
        return [
            Route("/mcp", self.listing),
            Route("/mcp/{name}", self.message, methods=["POST"]),
            Route("/mcp/{name}", self.close, methods=["DELETE"]),
        ]

    async def listing(self, request: Request) -> Response:
        return json_response(self._sessions.listing(getattr(request.state, "key", "")))

    async def message(self, request: Request) -> Response:
        name, key = request.path_params["name"], getattr(request.state, "key", "")
        check_origin(request)
        self._sessions.program(name)
        message = await self._read(request, key)
        session_id = request.headers.get(SESSION)
        if message.get("method") == "initialize" and "id" in message and session_id is None:
            return await self._open(request, name, key, message)
        if session_id is None:
            raise invalid(SESSION, "required in every message after initialize")
        process = self._sessions.find(name, session_id, key).process
        if "method" not in message or "id" not in message:
            await process.tell(message)
            return Response(status_code=202)
        if process.knows(message["id"]):
            raise invalid("id", f"a request with the id {message['id']!r:.60} is not answered yet")
        events = _events(process, message)
        if self._traced is not None and message["method"] == "tools/call":
            events = _within(self._traced(tool_name(message), request.headers), events)
        return EventStream(events, seconds=self._keep_alive)

    async def close(self, request: Request) -> Response:
        name, key = request.path_params["name"], getattr(request.state, "key", "")
        check_origin(request)
        await self._sessions.close(self._sessions.find(name, request.headers.get(SESSION, ""), key))
        return Response(status_code=204)

    async def _open(self, request: Request, name: str, key: str, message: Message) -> Response:
        opening = self._sessions.open(name, key, message)
        session, answer = await race_disconnect(request.receive, opening)
        response = json_response(answer)
        response.headers[SESSION] = session.id
        return response

    async def _read(self, request: Request, key: str) -> Message:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # a page of another site may send other types without asking first
            raise ApiError(415, "content-type: must be application/json", param="content-type")
        async with self._bodies.reading(request, key, self._body_seconds) as body:
            if len(body) > MOST_BODY_BYTES:
                raise ApiError(413, f"body: at most {MOST_BODY_BYTES:,} bytes are accepted", code="too_large")
            return checked(decode(body, 0))


def checked(value: Any) -> Message:
    """A message of JSON-RPC. Raises ApiError 400 for anything else, and for several messages at once."""
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        raise invalid("jsonrpc", "expected one message of JSON-RPC 2.0")
    number = value.get("id")
    if "id" in value and (isinstance(number, bool) or not isinstance(number, str | int)):
        raise invalid("id", "must be a text or a whole number")
    if not isinstance(value.get("method", ""), str):
        raise invalid("method", "must be a text")
    return value


def check_origin(request: Request) -> None:
    """Raise ApiError 403 for a request of a page that does not come from this server: a tool may change files."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin is not None and origin.partition("://")[2] != host:
        raise ApiError(403, f"origin: only pages of this server may use tools, got {origin!r:.80}", code="forbidden")


def tool_name(message: Message) -> str:
    """The tool that a message calls, cut to a name's length."""
    params = message.get("params")
    return short_name(str(params.get("name", "")) if isinstance(params, dict) else "")


async def _within(
    around: AbstractContextManager[None], events: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    with around:
        async with aclosing(events):
            async for each in events:
                yield each


async def _events(process: McpProcess, message: Message) -> AsyncGenerator[bytes, None]:
    answers = process.ask(message)
    try:
        async for answer in answers:
            yield event(answer)
    finally:
        await answers.aclose()
