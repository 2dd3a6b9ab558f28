"""Routes beside chat, and what happens on a real socket."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable

import httpx
import openai
import pytest

from dsv4.server.backend.models import ALIASES
from dsv4.server.wire.response import EventStream
from dsv4.server.wire.sse import KEEP_ALIVE
from tests.server.conftest import MODEL, Converse, Server, listening

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_models(serve: Converse) -> None:
    server = serve(context_length=1234)
    for path in ("/models", "/v1/models"):
        entry, *aliases = server.request("GET", path).json()["data"]
        assert entry["id"] == MODEL
        assert entry["context_window"] == 1234
        assert entry["effort"]["supported_levels"] == ["none", "high", "max"]
    assert server.request("GET", f"/v1/models/{MODEL}").json() == entry
    assert server.request("GET", "/models/deepseek-v4-flash").json()["id"] == "deepseek-v4-flash"
    assert {alias["id"] for alias in aliases} == set(ALIASES)
    assert entry["alias_of"] is None
    assert {alias["alias_of"] for alias in aliases} == {entry["id"]}
    assert server.request("GET", "/models/nope").json()["error"]["code"] == "model_not_found"

    async def use(client: openai.AsyncOpenAI) -> list[str]:
        return [model.id async for model in client.models.list()]

    assert server.sdk(use) == [MODEL, *ALIASES]


def test_health(serve: Converse) -> None:
    response = serve().request("GET", "/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "model": MODEL})


def test_chat_without_version_and_without_content_type(serve: Converse) -> None:
    response = serve("x").request("POST", "/chat/completions", content=json.dumps(BODY))
    assert response.json()["model"] == MODEL


def test_request_is_logged_as_one_line(serve: Converse, capsys: pytest.CaptureFixture[str]) -> None:
    serve("why</think>x").post()
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["status"], entry["finish"]) == ("request", 200, "stop")
    assert entry["completion_tokens"] > 2


def slow(serve: Converse) -> Server:
    return serve(list(range(300, 400)) * 100, context_length=100_000, delay=0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_cancels(serve: Converse, stream: bool) -> None:
    server = slow(serve)
    with listening(server) as url, httpx.Client() as client:
        body = {**BODY, "stream": stream}
        if stream:
            with client.stream("POST", f"{url}/chat/completions", json=body) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{url}/chat/completions", json=body, timeout=0.3)
        assert wait_for(lambda: server.generator.calls and server.generator.calls[0].closed_early)
        # the server goes on
        assert client.get(f"{url}/health").status_code == 200
    assert server.generator.calls[0].emitted < 1000
    backend = server.app.state.backend
    assert (backend.running, backend.metrics.finished) == (0, {"abort": 1})


def test_disconnect_during_silence_cancels(serve: Converse) -> None:
    server = serve("x", delay=60)
    with listening(server) as url, httpx.Client() as client:
        with client.stream("POST", f"{url}/chat/completions", json={**BODY, "stream": True}) as response:
            next(response.iter_lines())
        assert wait_for(lambda: server.generator.calls and server.generator.calls[0].closed_early)


def test_stream_arrives_token_by_token(serve: Converse) -> None:
    server = slow(serve)
    with listening(server) as url, httpx.Client() as client:
        body = {**BODY, "stream": True, "max_tokens": 10, "thinking": {"type": "disabled"}}
        with client.stream("POST", f"{url}/chat/completions", json=body) as response:
            lines = iter(line for line in response.iter_lines() if "content" in line)
            next(lines), next(lines)
            assert server.generator.calls[0].emitted < 10
            assert json.loads([*lines][-1].removeprefix("data: "))["usage"]["completion_tokens"] == 10


def test_two_requests_at_once(serve: Converse) -> None:
    server = serve("why</think>The answer", delay=0.01)

    async def use(client: openai.AsyncOpenAI) -> list[str]:
        calls = (client.chat.completions.create(model=MODEL, messages=BODY["messages"]) for _ in range(4))
        return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

    assert server.sdk(use) == ["The answer"] * 4


def test_keep_alive_comments_while_silent() -> None:
    async def silent() -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(0.2)
        yield b"data: 1\n\n"

    sent: list[bytes] = []

    async def run() -> None:
        async def receive() -> dict[str, str]:
            await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, bytes]) -> None:
            sent.append(message.get("body", b""))

        await EventStream(silent(), seconds=0.04)({"type": "http"}, receive, send)

    asyncio.run(run())
    assert sent[-2:] == [b"data: 1\n\n", b""]
    assert sent.count(KEEP_ALIVE) >= 2


def test_server_needs_no_torch() -> None:
    code = "import sys, dsv4.server.app, dsv4.testing.stub; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
