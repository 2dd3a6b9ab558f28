"""The outermost layer: admission, one log line per request, and an answer to every exception that reaches it."""

import asyncio
import re
import time
import uuid
from collections import Counter
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv4.observe import log
from dsv4.server.guard.admission import Admission
from dsv4.server.guard.cors import METHODS
from dsv4.server.guard.origin import headers_of
from dsv4.server.wire.errors import ApiError, stopping
from dsv4.server.wire.failures import as_api_error, error_response
from dsv4.server.wire.names import short_name
from dsv4.server.wire.response import ClientGone

CLIENT_CLOSED = 499
LONGEST_PATH = 256
# answered without a key: these pages hold no data of requests
OPEN_PATHS = frozenset({"/health", "/ready", "/version", "/v1/health", "/v1/ready", "/v1/version"})
REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class GuardMiddleware:
    """The outermost layer: request ids, admission, one log line per request, and a JSON error for every exception that
    no other layer handles.

    It answers HEAD and OPTIONS itself, for every path, because clients probe with them. open_paths: paths of static
    files, which need no key. responses: counts answers by status. A route may leave a function in `state["report"]`;
    the fields that it returns go to the log line. A page that asks every second leaves `state["polled"]`: its answers
    have a line only when they fail.
    """

    def __init__(self, app: ASGIApp, admission: Admission, open_paths: frozenset[str], responses: Counter[str]) -> None:
        self._app, self._admission, self._responses = app, admission, responses
        self._open = OPEN_PATHS | open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status: int | None = None
        headers = headers_of(scope)
        given = headers.get(b"x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        own = [(name, request_id.encode()) for name in (b"x-request-id", b"request-id")]
        own += self._admission.origins.headers(headers.get(b"origin"))

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
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
            if cut and not self._admission.draining:
                raise
            response = stopping() if cut else as_api_error(error)
            if status is None:
                await error_response(response, scope)(scope, receive, watched)
        finally:
            self._responses[str(status)] += 1
            _log_request(scope, request_id, status, began, outcome)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        probe = scope["method"] in ("HEAD", "OPTIONS")
        try:
            open_ = probe or scope["path"] in self._open
            scope["state"]["key"] = key = self._admission.key_of(scope, open=open_)
            if scope["method"] == "POST":
                self._admission.enter(key)
        except ApiError as error:
            await error_response(error, scope)(scope, receive, send)
            return
        try:
            await (self._probed(scope) if probe else self._app)(scope, receive, send)
        finally:
            if scope["method"] == "POST":
                self._admission.leave(key)

    def _probed(self, scope: Scope) -> Response:
        """The answer to HEAD and OPTIONS."""
        asked = self._admission.origins.preflight(headers_of(scope)) if scope["method"] == "OPTIONS" else None
        return asked or Response(headers={"allow": METHODS})


def _log_request(scope: Scope, request_id: str, status: int | None, began: float, outcome: dict[str, Any]) -> None:
    state = scope["state"]
    if state.get("polled") and status == 200:
        return
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
