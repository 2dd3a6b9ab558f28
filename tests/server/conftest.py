"""A small tokenizer, a stub for the engine, and three ways to talk to the server: raw, SDK, real socket."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
import uvicorn

from dsv4.encoding import Tokenizer, train_bpe
from dsv4.server import Settings, create_app
from dsv4.testing.stub import Script, StubGenerator

MODEL = "tiny"
CORPUS = (
    "The answer is forty-two because six times seven is forty-two. Paris is a city.\n" * 20
    + '{"city": "Paris", "days": 3}\n' * 10
    + "naïve café 日本語 💡🔥\n" * 10
)
TRIP = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}  # parameters of a function, or the schema of an answer

Converse = Callable[..., "Server"]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_bpe([CORPUS], 420, tmp_path_factory.mktemp("tokenizer"))


class Server:
    """The application over a stub that answers with fixed text; one fresh event loop per request."""

    def __init__(self, tokenizer: Tokenizer, generator: StubGenerator, **settings: Any) -> None:
        self.tokenizer, self.generator = tokenizer, generator
        self.app = create_app(generator, tokenizer, model_name=MODEL, settings=Settings(**settings))

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with self._http() as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def post(self, **fields: Any) -> httpx.Response:
        """A chat completion of raw JSON; model and messages have defaults."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **fields}
        return self.request("POST", "/v1/chat/completions", json=body)

    def answer(self, **fields: Any) -> dict[str, Any]:
        response = self.post(**fields)
        assert response.status_code == 200, response.text
        return response.json()

    def chunks(self, **fields: Any) -> list[dict[str, Any]]:
        """A streamed completion: every chunk, after checking the frame around them."""
        response = self.post(stream=True, **fields)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def sdk(self, use: Callable[[openai.AsyncOpenAI], Any]) -> Any:
        """Run `await use(client)` with the official SDK over the application."""

        async def run() -> Any:
            async with (
                self._http() as http,
                openai.AsyncOpenAI(
                    base_url="http://localhost/v1", api_key="any", http_client=http, max_retries=0
                ) as client,
            ):
                return await use(client)

        return asyncio.run(run())

    def claude(self, use: Callable[[anthropic.AsyncAnthropic], Any]) -> Any:
        """Run `await use(client)` with Anthropic's SDK over the application."""

        async def run() -> Any:
            # their SDK takes only the newer httpx
            transport = httpx2.ASGITransport(self.app)
            async with (
                httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http,
                anthropic.AsyncAnthropic(
                    base_url="http://localhost", api_key="any", http_client=http, max_retries=0
                ) as client,
            ):
                return await use(client)

        return asyncio.run(run())

    @asynccontextmanager
    async def _http(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


@pytest.fixture
def serve(tokenizer: Tokenizer) -> Converse:
    """`serve(text)`: a server whose model writes `text` (control tokens included) and then the end token."""

    def build(
        script: str | Script = "", *, ended: bool = True, settings: dict[str, Any] | None = None, **options: Any
    ) -> Server:
        if isinstance(script, str):
            end = [tokenizer.eos_id] if ended else []
            script = [*tokenizer.encode_text(script, trusted=True), *end]
        return Server(tokenizer, StubGenerator(script, **options), **(settings or {}))

    return build


@contextmanager
def listening(server: Server, **options: Any) -> Iterator[str]:
    """A real server on a free port of this machine; gives its address. options: of uvicorn."""
    options = {"lifespan": "off", "log_level": "warning", "port": 0, **options}
    config = uvicorn.Config(server.app, access_log=False, **options)
    running = uvicorn.Server(config)
    ready = threading.Event()

    async def startup(sockets: Any = None) -> None:
        await uvicorn.Server.startup(running, sockets)
        ready.set()

    running.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        assert ready.wait(60)
        port = running.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join(10)


def joined(chunks: Sequence[dict[str, Any]], name: str) -> str:
    """The text of one delta field over all chunks."""
    return "".join(chunk["choices"][0]["delta"].get(name) or "" for chunk in chunks if chunk["choices"])
