"""Only this machine is served, bodies have a bound, and a folder's sampling defaults reach the engine."""

import asyncio

import httpx
import pytest

from dsv4.encoding import Tokenizer
from dsv4.generation import SamplingDefaults
from dsv4.server import create_app
from dsv4.server.guard.origin import is_loopback
from dsv4.server.wire.body import LEAST_BODY_BYTES
from dsv4.testing.stub import StubGenerator

BODY = {"messages": [{"role": "user", "content": "Hi"}]}


def post(tokenizer: Tokenizer, content: bytes | None = None, **headers: str) -> tuple[httpx.Response, StubGenerator]:
    """One chat request to a fresh server; the generator it used."""
    generator = StubGenerator([*tokenizer.encode_text("yes", trusted=True), tokenizer.eos_id])
    app = create_app(generator, tokenizer, model_name="stub", defaults=SamplingDefaults(0.25, 0.75))

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
            if content is not None:
                return await client.post("/v1/chat/completions", content=content, headers=headers)
            return await client.post("/v1/chat/completions", json=BODY, headers=headers)

    return asyncio.run(run()), generator


@pytest.mark.parametrize(
    "headers", [{}, {"origin": "http://localhost:3000"}, {"host": "[::1]:8000"}, {"host": "localhost"}]
)
def test_this_machine_is_served(tokenizer: Tokenizer, headers: dict[str, str]) -> None:
    assert post(tokenizer, **headers)[0].status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", "evil.example"),
        ("host", "127.0.0.1.evil.example"),
        ("origin", "http://evil.example"),
        ("origin", "null"),
    ],
)
def test_other_sites_are_not(tokenizer: Tokenizer, field: str, value: str) -> None:
    response, generator = post(tokenizer, **{field: value})
    assert response.status_code == 403
    assert response.json()["error"]["param"] == field
    assert not generator.calls


def test_a_body_has_a_bound(tokenizer: Tokenizer) -> None:
    response, generator = post(tokenizer, content=b" " * (LEAST_BODY_BYTES + 1))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
    assert not generator.calls


def test_the_folders_sampling_is_the_default(tokenizer: Tokenizer) -> None:
    params = post(tokenizer)[1].calls[0].params
    assert (params.temperature, params.top_p) == (0.25, 0.75)


@pytest.mark.parametrize(
    ("name", "own"), [("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), ("", False), (None, False)]
)
def test_is_loopback(name: str | None, own: bool) -> None:
    assert is_loopback(name) is own
