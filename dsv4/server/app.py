"""The application: routes. Each exists with and without `/v1`, since clients disagree about whose part of the address
that is, and those of the official service's other bases under `/beta` and `/anthropic`.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from starlette.responses import Response

from dsv4.encoding import Tokenizer
from dsv4.generation import SamplingDefaults, TokenGenerator
from dsv4.server.anthropic import count_tokens, prepare_messages
from dsv4.server.backend import Backend, Settings
from dsv4.server.border import Border, Run, add_error_handlers, json_response, respond
from dsv4.server.chat_page import add_chat_page
from dsv4.server.completions import prepare_completion
from dsv4.server.errors import ApiError
from dsv4.server.ledger import Ledger
from dsv4.server.openai import prepare_chat
from dsv4.server.pages import Pages
from dsv4.server.responses import count_input, prepare_response
from dsv4.server.safety import read_body
from dsv4.server.tokens import token_ids, token_text

PREFIXES = ("", "/v1")
ANTHROPIC_PREFIXES = ("", "/v1", "/anthropic", "/anthropic/v1")
BETA_PREFIXES = ("", "/v1", "/beta", "/beta/v1")

Prepare = Callable[[Any, Backend, str], Awaitable[Run]]


def create_app(
    generator: TokenGenerator,
    tokenizer: Tokenizer,
    *,
    model_name: str,
    defaults: SamplingDefaults = SamplingDefaults(),  # noqa: B008 (frozen)
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    counters: Callable[[], Mapping[str, float]] | None = None,
    ledger: Ledger | None = None,
) -> FastAPI:
    """The server for one model under the name `model_name`; `defaults` fill what requests leave out.

    counters: numbers of the engine for the metrics page; ledger: where usage is kept, if anywhere.
    `app.state.backend` is what the requests share. Closes neither `generator` nor `ledger`.
    """
    app = FastAPI(title="dsv4", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    backend = Backend(generator, tokenizer, model_name, defaults, settings, counters, ledger=ledger)
    app.state.backend = backend

    def post(paths: list[str], prepare: Prepare) -> None:
        async def route(request: Request) -> Response:
            body = await read_json(request, settings.body_seconds)
            if backend.draining:
                raise ApiError(503, "the server is stopping", code="stopping", headers={"retry-after": "10"})
            return await respond(request, await prepare(body, backend, key_of(request)))

        for path in paths:
            app.add_api_route(path, route, methods=["POST"])

    post([f"{prefix}/chat/completions" for prefix in BETA_PREFIXES], prepare_chat)
    post([f"{prefix}/completions" for prefix in BETA_PREFIXES], prepare_completion)
    post([f"{prefix}/messages" for prefix in ANTHROPIC_PREFIXES], prepare_messages)

    post([f"{prefix}/responses" for prefix in PREFIXES], prepare_response)
    _add_counters(app, backend)
    Pages(backend).add_to(app, (*PREFIXES, "/anthropic", "/anthropic/v1"))
    add_chat_page(app)
    add_error_handlers(app)
    app.add_middleware(Border, backend=backend)
    return app


def _add_counters(app: FastAPI, backend: Backend) -> None:
    """The routes that only count or turn tokens."""
    pause = backend.settings.body_seconds

    async def count(request: Request) -> Response:
        return json_response(await count_tokens(await read_json(request, pause), backend, key_of(request)))

    async def count_items(request: Request) -> Response:
        return json_response(await count_input(await read_json(request, pause), backend, key_of(request)))

    async def tokenize(request: Request) -> Response:
        return json_response(await token_ids(await read_json(request, pause), backend))

    async def detokenize(request: Request) -> Response:
        return json_response(token_text(await read_json(request, pause), backend))

    for prefix in ANTHROPIC_PREFIXES:
        app.add_api_route(f"{prefix}/messages/count_tokens", count, methods=["POST"])
    for prefix in PREFIXES:
        app.add_api_route(f"{prefix}/responses/input_tokens", count_items, methods=["POST"])
        app.add_api_route(f"{prefix}/tokenize", tokenize, methods=["POST"])
        app.add_api_route(f"{prefix}/detokenize", detokenize, methods=["POST"])


async def read_json(request: Request, pause: float = 60.0) -> Any:
    """The decoded body, whatever content type the client claims. Raises ApiError 400, 408 or 413."""
    body = await read_body(request, pause)
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"body: not valid JSON: {error}", param="body", code="invalid_json") from error


def key_of(request: Request) -> str:
    """The name of the key a request came with, "" without keys."""
    return getattr(request.state, "key", "")
