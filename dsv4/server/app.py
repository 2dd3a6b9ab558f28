"""The application and its routes.

Every route exists with and without `/v1`, because some clients add it to the address and others expect it there. Routes
of the official service's other bases also exist under `/beta` and `/anthropic`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import GrammarError, Grammars
from dsv4.generation import SamplingDefaults, TokenGenerator
from dsv4.observe import log
from dsv4.server.accounts.ledger import Ledger
from dsv4.server.accounts.tracing import Tracing
from dsv4.server.admin.inspector import inspection
from dsv4.server.admin.routes import AdminRoutes
from dsv4.server.backend import Backend, Settings
from dsv4.server.backend.endable import Endable
from dsv4.server.dialects.chat.reply import prepare_chat
from dsv4.server.dialects.completions import prepare_completion
from dsv4.server.dialects.messages.reply import prepare_messages
from dsv4.server.dialects.responses.reply import prepare_response
from dsv4.server.dialects.run import Run
from dsv4.server.dialects.tokens import count_messages, count_responses, rendered_text, token_ids, token_text
from dsv4.server.guard.middleware import GuardMiddleware
from dsv4.server.guard.sizes import check_sizes
from dsv4.server.history_routes import HistoryRoutes
from dsv4.server.mcp.routes import McpRoutes
from dsv4.server.mcp.sessions import McpSessions
from dsv4.server.respond import patient, respond
from dsv4.server.response_routes import ResponseRoutes
from dsv4.server.routes import PlainRoutes
from dsv4.server.static import APP, page_files, page_routes
from dsv4.server.storage.history import History
from dsv4.server.storage.responses import StoredResponses
from dsv4.server.wire.failures import HANDLERS
from dsv4.server.wire.json import decode
from dsv4.server.wire.response import json_response

PREFIXES = ("", "/v1")
ANTHROPIC_PREFIXES = ("", "/v1", "/anthropic", "/anthropic/v1")
BETA_PREFIXES = ("", "/v1", "/beta", "/beta/v1")

# each takes a decoded body, the backend and the name of the key
Prepare = Callable[[Any, Backend, str], Run]
Count = Callable[[Any, Backend, str], Any]
ANSWERS: tuple[tuple[tuple[str, ...], str, Prepare], ...] = (
    (BETA_PREFIXES, "/chat/completions", prepare_chat),
    (BETA_PREFIXES, "/completions", prepare_completion),
    (ANTHROPIC_PREFIXES, "/messages", prepare_messages),
    (PREFIXES, "/responses", prepare_response),
)
# those that only count or turn tokens
COUNTS: tuple[tuple[tuple[str, ...], str, Count], ...] = (
    (ANTHROPIC_PREFIXES, "/messages/count_tokens", count_messages),
    (PREFIXES, "/responses/input_tokens", count_responses),
    (PREFIXES, "/tokenize", token_ids),
    (PREFIXES, "/detokenize", token_text),
    (PREFIXES, "/render", rendered_text),
)
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
    history: History | None = None,
    responses: StoredResponses | None = None,
    facts: Mapping[str, object] = MappingProxyType({}),
    pages: Path = APP,
    architecture: Callable[[], Mapping[str, Any]] | None = None,
    tracing: Tracing | None = None,
) -> Starlette:
    """The server for one model under the name `model_name`; `defaults` fill what requests leave out.

    counters: numbers of the engine for the metrics page. ledger: records usage, None = nothing does. history: keeps the
    conversations of the chat page, None = the page does. responses: stores Responses. facts: of the model, for
    `/props`. pages: folder of the bundled pages; without them `/` is the plain chat page. architecture: describes the
    model for its page; called once, in a thread. tracing: takes the spans of answers and tools.
    `app.state.backend` is the `Backend` that the requests share. Closes none of its arguments.
    """
    backend = Backend(
        Endable(generator),
        tokenizer,
        model_name,
        defaults,
        settings,
        counters,
        ledger=ledger,
        history=history,
        responses=responses,
        facts=facts,
        architecture=architecture,
        tracing=tracing,
    )
    files, tools = page_files(pages), McpSessions(settings.mcp, len(settings.keys.entries))
    app = Starlette(
        routes=[
            *_post_routes(backend),
            *_other_routes(backend),
            *_tool_routes(backend, tools),
            *page_routes(files, settings.mcp.origins),
        ],
        middleware=[_guard(backend, frozenset(files))],
        exception_handlers=HANDLERS,
        lifespan=partial(_lifespan, tools, backend.grammars),
    )
    app.router.redirect_slashes = False
    app.state.backend = backend
    return app


def _guard(backend: Backend, open_paths: frozenset[str]) -> Middleware:
    responses = backend.metrics.responses
    return Middleware(GuardMiddleware, admission=backend.admission, open_paths=open_paths, responses=responses)


def _post_routes(backend: Backend) -> Iterable[Route]:
    for prefix in PREFIXES:
        yield Route(f"{prefix}/admin/inspect", partial(_inspect, backend=backend), methods=["POST"])
    for handler, table in ((_answer, ANSWERS), (_count, COUNTS)):
        for prefixes, path, work in table:
            route = partial(handler, backend=backend, work=work)
            yield from (Route(prefix + path, route, methods=["POST"]) for prefix in prefixes)


def _other_routes(backend: Backend) -> Iterable[Route]:
    yield from _under((*PREFIXES, "/anthropic", "/anthropic/v1"), PlainRoutes(backend).routes())
    for routes in (AdminRoutes, HistoryRoutes, ResponseRoutes):
        yield from _under(PREFIXES, routes(backend).routes())


def _under(prefixes: Iterable[str], routes: list[Route]) -> Iterable[Route]:
    """Every route under each prefix: clients of other services put their own base before the same paths."""
    for prefix in prefixes:
        for route in routes:
            yield Route(prefix + route.path, route.endpoint, methods=route.methods)


@asynccontextmanager
async def _lifespan(tools: McpSessions, grammars: Grammars, app: Starlette) -> AsyncIterator[None]:
    # before the server says that it is ready: the library that reads keeps Python's lock for all of that time
    await asyncio.to_thread(_prepare, grammars)
    yield
    await tools.close_all()


def _prepare(grammars: Grammars) -> None:
    """Read the vocabulary. If that fails, requests that need a grammar are told so."""
    try:
        grammars.prepare()
    except GrammarError as error:
        log("grammars_unavailable", error=str(error))


def _tool_routes(backend: Backend, tools: McpSessions) -> list[Route]:
    settings = backend.settings
    bridge = McpRoutes(
        tools,
        backend.bodies,
        body_seconds=settings.body_seconds,
        keep_alive=settings.keep_alive,
        traced=None if backend.tracing is None else backend.tracing.tool,
    )
    return bridge.routes()


async def _answer(request: Request, *, backend: Backend, work: Prepare) -> Response:
    return await respond(request, await _understood(request, backend, work))


async def _inspect(request: Request, *, backend: Backend) -> Response:
    wanted = await _understood(request, backend, inspection)
    return patient(request, wanted.run(), backend.settings.keep_alive)


async def _count(request: Request, *, backend: Backend, work: Count) -> Response:
    def counted(body: Any, backend: Backend, key: str) -> Response:
        # a million ids also take their time to be written
        return json_response(work(body, backend, key))

    return await _understood(request, backend, counted)


async def _understood(request: Request, backend: Backend, prepare: Callable[[Any, Backend, str], T]) -> T:
    """The result of `prepare` for a request's body and key. The content type is ignored. Raises ApiError."""
    key = getattr(request.state, "key", "")
    async with backend.bodies.reading(request, key, backend.settings.body_seconds) as body:
        context, vocabulary = backend.generator.context_length, backend.tokenizer.vocab_size

        def work() -> T:
            value = decode(body, context)
            check_sizes(value, context, vocabulary)
            return prepare(value, backend, key)

        return await backend.workers.run(request, body, work)
