"""`n` answers to one request: with the SDK, whole and streamed, usage, seeds, limits, failures, a shared prompt."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dsv4.encoding import Tokenizer
from dsv4.generation import SamplingParams
from dsv4.server import ApiError, Keys
from dsv4.server.accounts.ledger import Ledger, read_usage
from tests.server.conftest import MODEL, Converse, Server, joined
from tests.server.test_chat import CALL, THOUGHT

USER: Any = {"role": "user", "content": "Hi"}
WORDS = ("Paris", "forty-two", "seven")


@pytest.fixture
def various(serve: Converse, tokenizer: Tokenizer) -> Server:
    """Answers with another word for each seed, and with a longer one each time."""

    def script(prompt: Sequence[int], params: SamplingParams) -> list[int]:
        word = WORDS[(params.seed or 0) % 3]
        text = f"why</think>{' '.join([word] * (1 + (params.seed or 0) % 3))}."
        return [*tokenizer.encode_text(text, trusted=True), tokenizer.eos_id]

    return serve(script, reused=2)


def test_whole(various: Server) -> None:
    answer = various.answer(n=3, seed=0)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert texts == ["Paris.", "forty-two forty-two.", "seven seven seven."]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
    alone = [various.answer(seed=seed)["usage"] for seed in range(3)]
    usage = answer["usage"]
    assert usage["prompt_tokens"] == alone[0]["prompt_tokens"]
    assert usage["prompt_cache_hit_tokens"] == 2
    for name in ("completion_tokens", "completion_tokens_details"):
        values = [own[name] if isinstance(own[name], int) else own[name]["reasoning_tokens"] for own in alone]
        assert (usage[name] if isinstance(usage[name], int) else usage[name]["reasoning_tokens"]) == sum(values)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    prompts = [call.prompt for call in various.generator.calls[:3]]
    assert prompts[0] == prompts[1] == prompts[2]


def test_stream_equals_whole_and_has_usage_once(various: Server) -> None:
    whole = various.answer(n=3, seed=0)
    chunks = various.chunks(n=3, seed=0, stream_options={"include_usage": True})
    for index, choice in enumerate(whole["choices"]):
        own = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["choices"][0]["delta"]["role"] == "assistant"
        assert joined(own, "content") == choice["message"]["content"]
        assert joined(own, "reasoning_content") == choice["message"]["reasoning_content"]
        assert [chunk["choices"][0]["finish_reason"] for chunk in own[-2:]] == [None, "stop"]
    assert [chunk["usage"] for chunk in chunks if chunk["usage"]] == [whole["usage"]]
    assert chunks[-1]["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    # the further choices begin when the first has its first token
    first, *others = various.generator.calls[-3:]
    assert all(call.ended for call in (first, *others))


def test_sdk(various: Server, serve: Converse) -> None:
    async def use(client: openai.AsyncOpenAI) -> tuple[Any, list[str]]:
        whole = await client.chat.completions.create(model=MODEL, messages=[USER], n=2, seed=1)
        texts = ["", ""]
        async for chunk in await client.chat.completions.create(model=MODEL, messages=[USER], n=2, seed=1, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        return whole, texts

    whole, texts = various.sdk(use)
    assert (
        [choice.message.content for choice in whole.choices] == texts == ["forty-two forty-two.", "seven seven seven."]
    )


def test_calls_of_each_choice_have_ids_of_their_own(serve: Converse) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    answer = serve("why" + CALL).answer(n=2, tools=tools)
    ids = [choice["message"]["tool_calls"][0]["id"] for choice in answer["choices"]]
    assert len(set(ids)) == 2
    assert all(choice["finish_reason"] == "tool_calls" for choice in answer["choices"])


def test_completions(various: Server) -> None:
    body = {"prompt": "Paris", "n": 2, "seed": 0, "echo": True}
    whole = various.request("POST", "/v1/completions", json=body).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert [choice["text"].startswith("Paris") for choice in whole["choices"]] == [True, True]
    assert len({choice["text"] for choice in whole["choices"]}) == 2

    async def use(client: openai.AsyncOpenAI) -> tuple[list[str], list[Any]]:
        texts, usages = ["", ""], []
        stream = await client.completions.create(model=MODEL, prompt="Paris", n=2, seed=0, echo=True, stream=True)
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
            usages += [chunk.usage] if chunk.usage else []
        return texts, usages

    texts, (usage,) = various.sdk(use)
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert usage.completion_tokens == whole["usage"]["completion_tokens"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("n", [0, 129, -1, 1.5, True, "2"])
def test_limits_are_named(serve: Converse, path: str, n: object) -> None:
    error = serve("x").request("POST", path, json={"messages": [USER], "prompt": "x", "n": n}).json()["error"]
    assert error["param"] == "n"
    if n in (0, 129, -1) and n is not True:
        assert "[1, 128]" in error["message"]


def test_the_ledger_and_the_limits_count_the_prompt_once(serve: Converse, tmp_path: Path) -> None:
    keys = Keys.parse(["ann secret-of-ann tokens=100000"])
    server = serve(THOUGHT, settings={"keys": keys}, reused=2)
    backend = server.app.state.backend
    backend.ledger = Ledger(tmp_path / "usage.sqlite")
    headers = {"authorization": "Bearer secret-of-ann"}
    body = {"messages": [USER], "n": 4}
    usage = server.request("POST", "/v1/chat/completions", json=body, headers=headers).json()["usage"]
    backend.ledger.close()
    (row,) = read_usage(tmp_path / "usage.sqlite")
    assert (row.requests, row.prompt, row.cached) == (1, usage["prompt_tokens"], 2)
    assert row.completion == usage["completion_tokens"]
    assert backend.metrics.prompt_tokens == usage["prompt_tokens"]
    assert backend.running == 0
    account, _ = backend.admission.limits._account("ann")
    assert account.tokens == usage["total_tokens"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_each_choice_counts_as_a_request(serve: Converse, path: str, stream: bool) -> None:
    keys = Keys.parse(["ann secret-of-ann requests=6", "bob secret-of-bob concurrent=2"])
    server = serve(THOUGHT, settings={"keys": keys})

    def ask(name: str, n: int) -> httpx.Response:
        body = {"messages": [USER], "prompt": "Hi", "n": n, "stream": stream}
        return server.request("POST", path, json=body, headers={"authorization": f"Bearer secret-of-{name}"})

    assert [ask("ann", n).status_code for n in (4, 3, 1, 1)] == [200, 429, 200, 429]
    assert [ask("bob", n).status_code for n in (2, 2)] == [200, 200]
    for name, most in (("ann", 6), ("bob", 2)):
        account, _ = server.app.state.backend.admission.limits._account(name)
        account.starts.clear()
        error = ask(name, most + 1)
        assert (error.status_code, error.json()["error"]["param"]) == (400, "n")
        assert f"at most {most}" in error.json()["error"]["message"]
        assert account.running == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_choice_ends_all(serve: Converse, tokenizer: Tokenizer, stream: bool) -> None:
    calls = 0

    def script(prompt: Sequence[int], params: SamplingParams) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ValueError("seed: no such seed")
        return tokenizer.encode_text("word " * 100)

    server = serve(script)
    answer = server.post(n=3, stream=stream)
    assert (answer.status_code, "no such seed" in answer.text) == (200 if stream else 400, True)
    assert "[DONE]" not in answer.text
    assert server.app.state.backend.running == 0
    assert server.generator.calls[0].closed_early


def test_a_client_that_leaves_ends_all(serve: Converse) -> None:
    server = serve("word " * 200, delay=0.001)

    async def use(client: openai.AsyncOpenAI) -> None:
        async with await client.chat.completions.create(model=MODEL, messages=[USER], n=3, stream=True) as stream:
            seen: set[int] = set()
            async for chunk in stream:
                seen.add(chunk.choices[0].index)
                if len(server.generator.calls) == 3:
                    break

    server.sdk(use)
    assert server.app.state.backend.running == 0
    assert all(call.closed_early or call.ended for call in server.generator.calls)


def test_an_ending_server_ends_all(serve: Converse) -> None:
    server = serve("word " * 200, delay=0.01)

    async def run() -> None:
        backend = server.app.state.backend
        from dsv4.server.dialects.chat.reply import prepare_chat

        started = prepare_chat({"messages": [USER], "n": 3}, backend, "")
        asyncio.get_running_loop().call_later(0.2, backend.generator.end)
        with pytest.raises(ApiError, match="stopping"):
            await started.complete()
        await started.close()
        assert backend.running == 0

    asyncio.run(run())
