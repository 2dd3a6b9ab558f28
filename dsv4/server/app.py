"""The application: routes. Each exists with and without `/v1`, since clients disagree about whose part of the address
that is, and those of the official service's other bases under `/beta` and `/anthropic`.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.responses import Response

from dsv4.encoding import Tokenizer
from dsv4.generation import SamplingDefaults, TokenGenerator
from dsv4.server.accounts.ledger import Ledger
from dsv4.server.backend import Backend, Settings
from dsv4.server.chat_page import add_chat_page
from dsv4.server.dialects.chat.reply import prepare_chat
from dsv4.server.dialects.completions import prepare_completion
from dsv4.server.dialects.messages.reply import count_tokens, prepare_messages
from dsv4.server.dialects.responses.reply import count_input, prepare_response
from dsv4.server.endable import Endable
from dsv4.server.guard.middleware import Border, Run, add_error_handlers, json_response, respond
from dsv4.server.routes import Pages
from dsv4.server.tokens import rendered_text, token_ids, token_text
from dsv4.server.wire.workers import understood

PREFIXES = ("", "/v1")
ANTHROPIC_PREFIXES = ("", "/v1", "/anthropic", "/anthropic/v1")
BETA_PREFIXES = ("", "/v1", "/beta", "/beta/v1")

Prepare = Callable[[Any, Backend, str], Run]
Count = Callable[[Any, Backend, str], Any]
T = TypeVar("T")


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
    backend = Backend(Endable(generator), tokenizer, model_name, defaults, settings, counters, ledger=ledger)
    app.state.backend = backend

    def post(paths: list[str], prepare: Prepare) -> None:
        async def route(request: Request) -> Response:
            return await respond(request, await _understood(request, backend, prepare))

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

    def post(paths: list[str], count: Count) -> None:
        def counted(body: Any, backend: Backend, key: str) -> Response:
            # writing a million ids takes its time, too
            return json_response(count(body, backend, key))

        async def route(request: Request) -> Response:
            return await _understood(request, backend, counted)

        for path in paths:
            app.add_api_route(path, route, methods=["POST"])

    post([f"{prefix}/messages/count_tokens" for prefix in ANTHROPIC_PREFIXES], count_tokens)
    post([f"{prefix}/responses/input_tokens" for prefix in PREFIXES], count_input)
    post([f"{prefix}/tokenize" for prefix in PREFIXES], token_ids)
    post([f"{prefix}/detokenize" for prefix in PREFIXES], token_text)
    post([f"{prefix}/render" for prefix in PREFIXES], rendered_text)


async def _understood(request: Request, backend: Backend, prepare: Callable[[Any, Backend, str], T]) -> T:
    """What `prepare` makes of a request's body and key, whatever content type the client claims. Raises ApiError."""
    key = getattr(request.state, "key", "")
    async with backend.bodies.reading(request, key, backend.settings.body_seconds) as body:
        context, vocabulary = backend.generator.context_length, backend.tokenizer.vocab_size

        def work() -> T:
            return understood(body, context, vocabulary, lambda value: prepare(value, backend, key))

        return await backend.workers.run(request, body, work)
