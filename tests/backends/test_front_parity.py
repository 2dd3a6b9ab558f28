"""The same requests through a server in front of an engine, and through one with the engine in process: equal bytes."""

import asyncio
import re
from typing import Any

import httpx
import pytest

from dsv4.encoding import Tokenizer
from dsv4.generation import TokenGenerator
from dsv4.server import Settings, create_app
from dsv4.testing.stub import StubGenerator
from tests.backends.conftest import KINDS, Kind, Site

USER = [{"role": "user", "content": "Hi"}]
TOOL = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CLAUDE = {"name": "get_weather", "input_schema": TOOL["parameters"]}
CALL = (
    'thinking</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" '
    'string="true">Paris</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
)
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("why</think>The answer is 42.", "/v1/chat/completions", {"messages": USER}),
    ("why</think>The answer is 42.", "/v1/chat/completions", {"messages": USER, "max_tokens": 5}),
    ("The answer", "/v1/chat/completions", {"messages": USER, "thinking": {"type": "disabled"}, "stop": "ans"}),
    ("The answer", "/v1/chat/completions", {"messages": USER, "logprobs": True, "top_logprobs": 2, "temperature": 0}),
    (CALL, "/v1/chat/completions", {"messages": USER, "tools": [{"type": "function", "function": TOOL}]}),
    ("a naïve café 日本語 💡", "/v1/completions", {"prompt": "x", "return_token_ids": True}),
    ("why</think>The answer is 42.", "/v1/messages", {"messages": USER, "max_tokens": 99}),
    (CALL, "/v1/messages", {"messages": USER, "max_tokens": 99, "tools": [CLAUDE]}),
    ("why</think>The answer is 42.", "/v1/responses", {"input": "Hi"}),
    (CALL, "/v1/responses", {"input": "Hi", "tools": [{"type": "function", **TOOL}]}),
]


def same(text: str) -> str:
    """The text without what is different each time: ids and clocks."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}", "UUID", text)
    text = re.sub(r"[0-9a-f]{24,64}", "HEX", text)
    return re.sub(r'"(created|created_at|completed_at)":\s*[\d.]+', r'"\1":0', text)


async def answers(generator: TokenGenerator, tokenizer: Tokenizer, path: str, body: dict[str, Any]) -> list[str]:
    """Status and body of the answer, whole and streamed."""
    app = create_app(generator, tokenizer, model_name="tiny", settings=Settings())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        got = [await client.post(path, json={"model": "tiny", **body, "stream": stream}) for stream in (False, True)]
    return [f"{response.status_code} {same(response.text)}" for response in got]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_the_engine_in_process(site: Site, kind: Kind) -> None:
    tokenizer = site.tokenizer
    script: list[int] = []
    stub = StubGenerator(lambda prompt, params: script)
    remote = site.remote(site.server(kind, stub))

    async def compare() -> None:
        for text, path, body in CASES:
            script[:] = [*tokenizer.encode_text(text, trusted=True), tokenizer.eos_id]
            expected = await answers(stub, tokenizer, path, body)
            assert all(answer.startswith("200 ") for answer in expected), expected
            assert await answers(remote, tokenizer, path, body) == expected, (path, body)
        remote.close()

    asyncio.run(compare())


@pytest.mark.parametrize("kind", KINDS)
def test_refusals_and_failures_are_those_of_the_engine_in_process(site: Site, kind: Kind) -> None:
    stub = StubGenerator([5, 6], context_length=60, error="no memory")
    remote = site.remote(site.server(kind, stub))

    async def compare() -> None:
        for body in ({"messages": USER}, {"messages": [{"role": "user", "content": "x y z " * 40}]}):
            own, front = [await answers(g, site.tokenizer, "/v1/chat/completions", body) for g in (stub, remote)]
            assert [answer[:4] for answer in own] == [answer[:4] for answer in front]
            assert ("no memory" in own[0]) == ("no memory" in front[0])
            assert ("maximum context length" in own[0]) == ("maximum context length" in front[0])
        remote.close()

    asyncio.run(compare())
