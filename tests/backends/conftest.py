"""Servers that speak as vLLM and SGLang do, on this machine, and generators over them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import pytest

from dsv4.backends.generator import RemoteGenerator
from dsv4.backends.survey import connect
from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import Grammars
from dsv4.generation import ConstraintFactory, RequestOptions, SamplingParams, TokenEvent, TokenGenerator
from dsv4.testing.engine_server import EngineServer
from tests.engine.small_service import service
from tests.server.conftest import listening, tokenizer

__all__ = ["service", "tokenizer"]  # the fixtures

T = TypeVar("T")
Kind = Literal["vllm", "sglang"]
KINDS: tuple[Kind, ...] = ("vllm", "sglang")
PROMPT = [0, 50, 51, 52]


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


class Site:
    """Servers over generators, and the generator that connects to them."""

    def __init__(self, tokenizer: Tokenizer, stack: ExitStack) -> None:
        self.tokenizer, self._stack = tokenizer, stack

    def server(self, kind: Kind, generator: TokenGenerator, **options: Any) -> EngineServer:
        return EngineServer(
            generator, kind, tokenize=self.tokenizer.encode_text, compile=compiled(self.tokenizer), **options
        )

    def listen(self, server: EngineServer, port: int = 0) -> str:
        app = SimpleNamespace(app=server.app())
        return self._stack.enter_context(listening(app, log_level="critical", port=port))

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


async def told(
    generator: TokenGenerator,
    params: SamplingParams,
    prompt: list[int] | None = None,
    options: RequestOptions | None = None,
) -> list[TokenEvent]:
    """The events of one answer."""
    return [event async for event in generator.stream(prompt or PROMPT, params, options)]


def ask(remote: RemoteGenerator, params: SamplingParams, **more: Any) -> list[TokenEvent]:
    """The events of one answer, in a loop of its own."""
    return run(lambda: told(remote, params, **more), remote)
