"""The outermost layer: who may use the server, what is logged, and an answer for whatever nobody else caught."""

import asyncio
import re
import time
import uuid
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv4.observe import log
from dsv4.server.backend import Backend
from dsv4.server.guard.origin import headers_of, refusal
from dsv4.server.wire.errors import ApiError, busy, stopping
from dsv4.server.wire.failures import as_api_error, error_response
from dsv4.server.wire.names import short_name
from dsv4.server.wire.response import ClientGone

CLIENT_CLOSED = 499
LONGEST_PATH = 256
# answered without a key: they tell nothing about anybody's requests
OPEN_PATHS = frozenset({"/health", "/ready", "/version", "/v1/health", "/v1/ready", "/v1/version"})
REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class GuardMiddleware:
    """Outermost: request ids, who may use the server, one log line per request, and a JSON error for whatever nobody
    else caught.

    HEAD and OPTIONS are answered here, for every path: clients probe with them. open_paths: of static files, which need
    no key either. A route leaves a function in `state["report"]` whose fields go to the log line.
    """

    def __init__(self, app: ASGIApp, backend: Backend, open_paths: frozenset[str]) -> None:
        self._app, self._backend, self._open = app, backend, OPEN_PATHS | open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status: int | None = None
        given = headers_of(scope).get(b"x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", request_id.encode()), (b"request-id", request_id.encode())]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        outcome: dict[str, Any] = {}
        try:
            await self._answer(scope, receive, watched)
        except (ClientGone, ClientDisconnect):
            outcome["disconnected"] = True
            status = status or CLIENT_CLOSED
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a Rust library is no Exception
            cut = isinstance(error, asyncio.CancelledError)
            if cut and not self._backend.draining:
                raise
            response = stopping() if cut else as_api_error(error)
            if status is None:
                await error_response(response, scope)(scope, receive, watched)
        finally:
            self._backend.metrics.responses[str(status)] += 1
            _log_request(scope, request_id, status, began, outcome)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            key = self._checked(scope)
            if scope["method"] != "POST":
                await self._pass(scope, receive, send)
                return
            self._enter(key)
        except ApiError as error:
            await error_response(error, scope)(scope, receive, send)
            return
        try:
            await self._pass(scope, receive, send)
        finally:
            self._backend.inside -= 1
            self._backend.limits.leave(key)

    def _checked(self, scope: Scope) -> str:
        """The name of the key of a request that may be looked at. Raises ApiError."""
        settings, headers = self._backend.settings, headers_of(scope)
        if b"transfer-encoding" in headers and b"content-length" in headers:
            # two programs on the way may see two ends of such a body, and another request behind one of them
            raise ApiError(400, "content-length: not together with transfer-encoding", headers={"connection": "close"})
        if settings.local_only and (refused := refusal(scope)) is not None:
            raise refused
        if scope["path"] in self._open or scope["method"] in ("HEAD", "OPTIONS"):
            return ""
        key = settings.keys.check(headers.get(b"authorization"), headers.get(b"x-api-key"))
        scope["state"]["key"] = key
        return key

    def _enter(self, key: str) -> None:
        """Let a request in that costs time, before its body is read. Raises ApiError 429 or 503."""
        backend = self._backend
        if backend.draining:
            raise stopping()
        if backend.inside >= backend.settings.max_requests:
            raise busy(f"{backend.inside} requests are running already; try again later")
        backend.limits.enter(key)
        backend.inside += 1

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in ("HEAD", "OPTIONS"):
            response = Response(status_code=200, headers={"allow": "GET, POST, HEAD, OPTIONS"})
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _log_request(scope: Scope, request_id: str, status: int | None, began: float, outcome: dict[str, Any]) -> None:
    state = scope["state"]
    report = state["report"]() if "report" in state else {}
    if "model" in report:
        report["model"] = short_name(report["model"])
    if state.get("key"):
        report["key"] = state["key"]
    log(
        "request",
        request_id=request_id,
        method=scope["method"],
        path=short_name(scope["path"], LONGEST_PATH),
        status=status,
        seconds=round(time.perf_counter() - began, 4),
        **report,
        **outcome,
    )
