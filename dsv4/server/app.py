"""The application: routes, and the borders where every failure becomes an error a client understands.

Each route exists with and without `/v1`, since clients disagree about whose part of the address that is.
"""

import time
import traceback
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv4.encoding import Tokenizer
from dsv4.generation import SamplingDefaults, TokenGenerator
from dsv4.observe import log
from dsv4.server.errors import ApiError, from_problem
from dsv4.server.models import check_model, model_entry
from dsv4.server.openai import ChatRun, prepare_chat
from dsv4.server.prompt import supported_efforts
from dsv4.server.safety import read_body, refusal
from dsv4.server.sse import ClientGone, EventStream, event, race_disconnect, to_json

PREFIXES = ("", "/v1")
CLIENT_CLOSED = 499


def create_app(
    generator: TokenGenerator,
    tokenizer: Tokenizer,
    *,
    model_name: str,
    defaults: SamplingDefaults = SamplingDefaults(),  # noqa: B008 (frozen)
) -> FastAPI:
    """The server for one model under the name `model_name`; `defaults` fill what requests leave out.

    Does not close `generator`.
    """
    app = FastAPI(title="dsv4", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    started = int(time.time())

    def entry(name: str) -> dict[str, Any]:
        efforts = supported_efforts(tokenizer.dialect)
        return model_entry(name, created=started, context_length=generator.context_length, efforts=efforts)

    async def chat_completions(request: Request) -> Response:
        chat = await prepare_chat(await read_json(request), generator, tokenizer, defaults, model_name=model_name)
        request.state.chat = chat
        if chat.streaming:
            return EventStream(guarded(chat))
        return json_response(await race_disconnect(request.receive, chat.complete()))

    async def models() -> Response:
        return json_response({"object": "list", "data": [entry(model_name)]})

    async def model(model_id: str) -> Response:
        check_model(model_id, model_name)
        return json_response(entry(model_id))

    async def health() -> Response:
        return json_response({"status": "ok", "model": model_name})

    for prefix in PREFIXES:
        app.add_api_route(f"{prefix}/chat/completions", chat_completions, methods=["POST"])
        app.add_api_route(f"{prefix}/models", models, methods=["GET"])
        app.add_api_route(f"{prefix}/models/{{model_id:path}}", model, methods=["GET"])
    app.add_api_route("/health", health, methods=["GET"])
    _add_error_handlers(app)
    app.add_middleware(Border)
    return app


def json_response(value: object, status: int = 200) -> Response:
    """A JSON response with raw bytes."""
    return Response(to_json(value), status, media_type="application/json")


async def read_json(request: Request) -> Any:
    """The decoded body, whatever content type the client claims. Raises ApiError 400 or 413."""
    body = await read_body(request)
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"body: not valid JSON: {error}", param="body", code="invalid_json") from error


async def guarded(chat: ChatRun) -> AsyncGenerator[bytes, None]:
    """The stream of `chat`, in which a failure becomes a last event: the status line is long sent."""
    chunks = chat.stream()
    try:
        async for chunk in chunks:
            yield chunk
    except ApiError as error:
        log("stream_failed", id=chat.id, error=error.message)
        yield event(error.body())
    except Exception as error:
        yield event(_internal(error).body())
    finally:
        await chunks.aclose()


class Border:
    """Outermost: who may ask, one log line per request, and a JSON error for whatever nobody else caught."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status: int | None = None

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        outcome: dict[str, Any] = {}
        try:
            refused = refusal(scope)
            if refused is not None:
                await json_response(refused.body(), refused.status)(scope, receive, watched)
            else:
                await self._app(scope, receive, watched)
        except ClientGone:
            outcome["disconnected"] = True
            status = status or CLIENT_CLOSED
        except Exception as error:
            response = _internal(error)
            if status is None:
                await json_response(response.body(), response.status)(scope, receive, watched)
        finally:
            seconds = round(time.perf_counter() - began, 4)
            log(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                seconds=seconds,
                **_report(scope),
                **outcome,
            )


def _report(scope: Scope) -> dict[str, Any]:
    chat = scope.get("state", {}).get("chat")
    if not isinstance(chat, ChatRun):
        return {}
    counts = chat.usage()
    finish = chat.answer.finish_reason if chat.answer.over else None
    return {
        "id": chat.id,
        "streaming": chat.streaming,
        "prompt_tokens": counts["prompt_tokens"],
        "completion_tokens": counts["completion_tokens"],
        "finish": finish,
    }


def _internal(error: Exception) -> ApiError:
    log("internal_error", error=repr(error), traceback=traceback.format_exc())
    return ApiError(500, f"internal error: {type(error).__name__}", code="internal_error")


def _add_error_handlers(app: FastAPI) -> None:
    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        response = json_response(error.body(), error.status)
        response.headers.update(error.headers or {})
        return response

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
