"""The vocabulary for grammars is read when the server starts, before it says that it is ready."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import llguidance
import pytest

from tests.server.conftest import Converse, Server
from tests.server.test_guarded_calls import OFF, TOOLS

TOOLS_REQUEST = {"messages": [{"role": "user", "content": "Q"}], "tools": TOOLS, **OFF}


def running(server: Server, use: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Use a server that was started and is ended."""

    async def run() -> None:
        app = server.app
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            await use(client)

    asyncio.run(run())


def test_it_is_read_once_and_before_the_first_request(serve: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, real = list[bool](), llguidance.LLTokenizer

    def read(*args: Any, **more: Any) -> Any:
        reads.append(threading.current_thread() is threading.main_thread())
        return real(*args, **more)

    monkeypatch.setattr(llguidance, "LLTokenizer", read)

    async def use(client: httpx.AsyncClient) -> None:
        assert reads == [False]
        assert (await client.post("/v1/chat/completions", json=TOOLS_REQUEST)).status_code == 200

    running(serve("Yes."), use)
    assert reads == [False]


def test_it_is_read_without_any_request(serve: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, real = list[bool](), llguidance.LLTokenizer

    def read(*args: Any, **more: Any) -> Any:
        reads.append(True)
        return real(*args, **more)

    monkeypatch.setattr(llguidance, "LLTokenizer", read)
    server = serve("Yes.")

    async def nothing(client: httpx.AsyncClient) -> None: ...

    running(server, nothing)
    assert reads == [True]
    server.answer(tools=TOOLS, **OFF)
    assert reads == [True]


def test_a_vocabulary_that_cannot_be_read_leaves_calls_free(
    serve: Converse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any, **more: Any) -> Any:
        raise ValueError("no such vocabulary")

    monkeypatch.setattr(llguidance, "LLTokenizer", broken)

    async def use(client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/chat/completions", json=TOOLS_REQUEST)).status_code == 200
        refused = await client.post(
            "/v1/chat/completions", json={**TOOLS_REQUEST, "response_format": {"type": "json_object"}}
        )
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")

    running(serve("Yes."), use)
    assert "grammars_unavailable" in capsys.readouterr().err
