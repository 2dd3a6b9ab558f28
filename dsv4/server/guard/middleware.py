"""The borders of the application: who may ask, what is logged, and every failure as an error a client understands."""

import asyncio
import re
import time
import traceback
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv4.observe import log
from dsv4.server.backend import Backend
from dsv4.server.chat_page import FILES
from dsv4.server.dialects.job import Job
from dsv4.server.guard.origin import headers_of, refusal, short_name
from dsv4.server.models import DEPRECATED, RETIRED, THINK_MAX_CONTEXT
from dsv4.server.wire.errors import ApiError, busy, from_problem, stopping
from dsv4.server.wire.sse import ClientGone, EventStream, PatientResponse, race_disconnect, to_json

CLIENT_CLOSED = 499
LONGEST_PATH = 256
# answered without a key: they tell nothing about anybody's requests
OPEN_PATHS = frozenset({"/health", "/ready", "/version", "/v1/health", "/v1/ready", "/v1/version", *FILES})
REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Run(Protocol):
    """An answer in one dialect."""

    job: Job
    streaming: bool

    async def complete(self) -> dict[str, Any]: ...
    def stream(self) -> AsyncGenerator[bytes, None]: ...
    def keep_alive(self) -> bytes: ...
    def failed(self, error: ApiError) -> bytes: ...


async def respond(request: Request, run: Run) -> Response:
    """The response of a run, whole or streamed. Raises ApiError if the engine refuses it at once."""
    job = run.job
    request.state.job = job
    seconds = job.backend.settings.keep_alive
    model = job.ask.model
    headers = {}
    if model in DEPRECATED:
        headers["deprecation"] = RETIRED
        log("deprecated_model", model=short_name(model), id=job.id)
    context = job.backend.generator.context_length
    if job.ask.effort == "max" and context < THINK_MAX_CONTEXT:
        headers["warning"] = (
            f'299 - "effort max is made for a context of {THINK_MAX_CONTEXT} tokens, this has {context}"'
        )
        log("short_context_for_max_effort", context=context, recommended=THINK_MAX_CONTEXT, id=job.id)
    if run.streaming:
        await race_disconnect(request.receive, job.begin())
        response: Response = EventStream(guarded(run), keep_alive=run.keep_alive, seconds=seconds, closing=job.close)
    else:
        response = PatientResponse(
            run.complete(), lambda error: error_body(_as_api_error(error), request.scope), seconds
        )
    response.raw_headers += [(name.encode(), value.encode()) for name, value in headers.items()]
    return response


async def guarded(run: Run) -> AsyncGenerator[bytes, None]:
    """The stream of `run`, in which a failure becomes a last event: the status line is long sent."""
    chunks = run.stream()
    try:
        async for chunk in chunks:
            yield chunk
    except ApiError as error:
        log("stream_failed", id=run.job.id, error=error.message)
        yield run.failed(error)
    except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        yield run.failed(_internal(error))
    finally:
        await chunks.aclose()


def json_response(value: object, status: int = 200) -> Response:
    """A JSON response with raw bytes."""
    return Response(to_json(value), status, media_type="application/json")


def error_body(error: ApiError, scope: Scope) -> dict[str, Any]:
    """The error in the form of the route's dialect."""
    if speaks_anthropic(scope):
        return error.anthropic_body(scope.get("state", {}).get("request_id"))
    return error.body()


def error_response(error: ApiError, scope: Scope) -> Response:
    """The response of an error, with its headers."""
    status = 529 if error.status == 503 and speaks_anthropic(scope) else error.status
    response = json_response(error_body(error, scope), status)
    response.headers.update(error.headers or {})
    return response


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a route belongs to Anthropic's interface."""
    path = scope["path"]
    return "/messages" in path or path.startswith("/anthropic")


class Border:
    """Outermost: request ids, who may ask, one log line per request, and a JSON error for whatever nobody else caught.

    HEAD and OPTIONS are answered here, for every path: clients probe with them.
    """

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        self._app, self._backend = app, backend

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
            response = stopping() if cut else _internal(error)
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
        if scope["path"] in OPEN_PATHS or scope["method"] in ("HEAD", "OPTIONS"):
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


def add_error_handlers(app: FastAPI) -> None:
    """Errors of routes and of the framework in the form of the route's dialect."""

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error_response(error, request.scope)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        match error.status_code:
            case 404:
                text, code = f"no such route: {request.method} {path}", "not_found"
            case 405:
                text, code = f"{path} does not allow {request.method}", "method_not_allowed"
            case _:
                text, code = str(error.detail), "invalid_request_error"
        return await api_error(request, ApiError(error.status_code, text, code=code, headers=error.headers))

    async def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        problem = dict(error.errors()[0])
        problem["loc"] = problem["loc"][1:]  # without "body", "query" or "path"
        return await api_error(request, from_problem(problem))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)


def _log_request(scope: Scope, request_id: str, status: int | None, began: float, outcome: dict[str, Any]) -> None:
    state = scope["state"]
    job = state.get("job")
    report = job.report() if isinstance(job, Job) else {}
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


def _as_api_error(error: BaseException) -> ApiError:
    return error if isinstance(error, ApiError) else _internal(error)


def _internal(error: BaseException) -> ApiError:
    log("internal_error", error=repr(error), traceback=traceback.format_exc())
    return ApiError(500, f"internal error: {type(error).__name__}", code="internal_error")
