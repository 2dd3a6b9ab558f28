"""Servers that speak as vLLM and SGLang do, on this machine, and generators over them."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

import pytest
import uvicorn

from dsv4.backends.generator import RemoteGenerator
from dsv4.backends.survey import connect
from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import Grammars
from dsv4.generation import ConstraintFactory, TokenGenerator
from dsv4.testing.engine_server import EngineServer
from tests.server.conftest import tokenizer

__all__ = ["tokenizer"]  # the fixture

T = TypeVar("T")
Kind = Literal["vllm", "sglang"]
KINDS: tuple[Kind, ...] = ("vllm", "sglang")


def compiled(tokenizer: Tokenizer) -> Callable[[str, str], ConstraintFactory]:
    """The grammar engine of a server with llguidance."""
    import json

    import llguidance

    grammars = Grammars(tokenizer)

    def compile(kind: str, text: str) -> ConstraintFactory:
        if kind == "json":
            return grammars.json_schema(json.loads(text))
        return grammars._make(text, lambda: llguidance.LLMatcher.grammar_from_lark(text))

    return compile


@contextmanager
def listening(server: EngineServer, port: int = 0) -> Iterator[str]:
    """The server on a port of this machine; gives its address."""
    config = uvicorn.Config(server.app(), port=port, log_level="critical", lifespan="off", access_log=False)
    running = uvicorn.Server(config)
    ready = threading.Event()

    async def startup(sockets: Any = None) -> None:
        await uvicorn.Server.startup(running, sockets)
        ready.set()

    running.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        assert ready.wait(20)
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(20)


class Site:
    """Servers over generators, and the generator that connects to them."""

    def __init__(self, tokenizer: Tokenizer, stack: ExitStack) -> None:
        self.tokenizer, self._stack = tokenizer, stack

    def server(self, kind: Kind, generator: TokenGenerator, **options: Any) -> EngineServer:
        return EngineServer(
            generator, kind, tokenize=self.tokenizer.encode_text, compile=compiled(self.tokenizer), **options
        )

    def listen(self, server: EngineServer, port: int = 0) -> str:
        return self._stack.enter_context(listening(server, port))

    def connect(self, *urls: str, **options: Any) -> RemoteGenerator:
        options = {"silence": 20.0, **options}
        return connect(urls, self.tokenizer.encode_text, **options)[0]

    def remote(self, *servers: EngineServer, **options: Any) -> RemoteGenerator:
        """A generator over these servers."""
        return self.connect(*map(self.listen, servers), **options)


@pytest.fixture
def site(tokenizer: Tokenizer) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tokenizer, stack)


def run(work: Callable[[], Awaitable[T]], remote: RemoteGenerator | None = None) -> T:
    """Run `await work()` in a loop of its own; connections of `remote` end with it."""

    async def all_of_it() -> T:
        try:
            return await work()
        finally:
            if remote is not None:
                remote.close()
                await asyncio.sleep(0)

    return asyncio.run(all_of_it())
