"""Sampling fields, owners, cache accounting, replays, refusals by load, aliases, keep-alives."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from dsv4.encoding import Tokenizer
from dsv4.generation import (
    BusyError,
    ContextLengthError,
    FinishReason,
    PromptProgress,
    RequestOptions,
    SamplingParams,
    TokenEvent,
)
from dsv4.server.dialects.request import owner_name
from dsv4.testing.stub import StubGenerator
from tests.server.conftest import MODEL, Converse, Server, listening
from tests.server.test_chat import CALL, THOUGHT, TOOLS

OFF = {"thinking": {"type": "disabled"}}
USER = {"role": "user", "content": "Hi"}


def test_sampling_fields(serve: Converse) -> None:
    server = serve("x")
    fields = {"top_k": 5, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1.5, "logit_bias": {"7": -100}}
    server.answer(**fields, **OFF)
    params = server.generator.calls[0].params
    assert (params.top_k, params.min_p, params.presence_penalty, params.frequency_penalty) == (5, 0.1, 1, -1.5)
    assert params.logit_bias == ((7, -100.0),)
    server.answer(top_k=-1, **OFF)
    assert server.generator.calls[1].params.top_k == 0


@pytest.mark.parametrize("free", [False, True])
def test_sampling_is_fixed_while_thinking(serve: Converse, free: bool) -> None:
    server = serve(THOUGHT, settings={"free_sampling": free})
    server.answer(temperature=0, top_p=0.1, presence_penalty=1.5, seed=3, logit_bias={"7": 1})
    params = server.generator.calls[0].params
    expected = (0, 0.1, 1.5) if free else (1.0, 1.0, 0.0)
    assert (params.temperature, params.top_p, params.presence_penalty) == expected
    assert (params.seed, params.logit_bias) == (3, ((7, 1.0),))


def test_owner() -> None:
    assert owner_name("", None, "") == ""
    assert owner_name("", None, "ann") == owner_name("", "ann", "bob")
    # no key and user read together are another key and user, and no name is kept as it is
    pairs = [("", "ann"), ("ann", ""), ("key1", "ann"), ("key", "1ann"), ("a", "b/"), ("a/b", ""), ("a/", "b")]
    owners = {owner_name(*pair) for pair in pairs} | {owner_name("", "u" * 2_000_000)}
    assert len(owners) == 8
    assert {len(owner) for owner in owners} == {32}
    assert owner_name("", "user_1_account_2_session_3") == owner_name("", "user_1_account_2_session_4")
    first, second = (json.dumps({"device_id": "d", "session_id": session}) for session in "ab")
    assert owner_name("", first) == owner_name("", second) != owner_name("", "other")


def test_usage_shows_reused_tokens(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(THOUGHT, reused=4)
    for usage in (server.answer()["usage"], server.chunks()[-1]["usage"]):
        assert usage["prompt_cache_hit_tokens"] == usage["prompt_tokens_details"]["cached_tokens"] == 4
        assert usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"] == usage["prompt_tokens"]


def test_cache_points_are_message_borders(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(THOUGHT)
    turns = [USER, {"role": "assistant", "content": "x"}] * 4
    server.answer(messages=[{"role": "system", "content": "Rules."}, *turns, USER])
    call = server.generator.calls[0]
    points = call.options.cache_points
    assert len(points) == 4
    roles = {tokenizer.token_id("<｜User｜>"), tokenizer.token_id("<｜Assistant｜>")}
    assert all(call.prompt[point] in roles for point in points)
    assert call.prompt.index(tokenizer.token_id("<｜User｜>")) == points[0]


def history(message: dict[str, Any]) -> list[dict[str, Any]]:
    result = {"role": "tool", "tool_call_id": "x", "content": "sunny"}
    return [USER, message, result]


SPACED = CALL.replace('"false">3<', '"false"> {"a" : 1,"b":[2]}<')


@pytest.mark.parametrize("change", ["nothing", "compact", "id", "no reasoning", "numbers"])
def test_a_call_sent_back_has_the_sampled_tokens(serve: Converse, tokenizer: Tokenizer, change: str) -> None:
    script = [
        *tokenizer.encode_text("w"),
        *tokenizer.encode_text("hy" + SPACED, trusted=True),
        tokenizer.eos_id,
    ]
    server = serve(script)
    message = server.answer(tools=TOOLS)["choices"][0]["message"]
    (call,) = message["tool_calls"]
    if change == "compact":
        call["function"]["arguments"] = json.dumps(json.loads(call["function"]["arguments"]), separators=(",", ":"))
    if change == "numbers":  # as Go or JavaScript print them
        text = call["function"]["arguments"]
        call["function"]["arguments"] = text.replace(": 1,", ": 1.0,").replace("[2]", "[2e0]").replace("P", "\\u0050")
        assert call["function"]["arguments"] != text
    if change == "id":
        call["id"] = "-".join(call["id"])
    if change == "no reasoning":
        del message["reasoning_content"]
    server.answer(tools=TOOLS, messages=history(message))
    first, second = server.generator.calls
    assert second.prompt[: len(first.prompt) + len(script)] == [*first.prompt, *script]


def test_a_changed_call_is_not_replayed(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve("why" + CALL)
    message = server.answer(tools=TOOLS)["choices"][0]["message"]
    message["tool_calls"][0]["function"]["arguments"] = '{"city": "Rome"}'
    server.answer(tools=TOOLS, messages=history(message))
    text = tokenizer.decode(server.generator.calls[1].prompt)
    assert "Rome" in text
    assert "Paris" not in text


def test_text_turns_are_replayed_in_the_same_conversation_only(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve("why</think>yes")
    message = server.answer(tools=TOOLS)["choices"][0]["message"]
    del message["reasoning_content"]
    server.answer(tools=TOOLS, messages=[USER, message, USER])
    server.answer(tools=TOOLS, messages=[{"role": "user", "content": "Other"}, message, USER])
    server.answer(tools=TOOLS, messages=[USER, message, USER], user="somebody else")
    same, other, owner = (tokenizer.decode(call.prompt) for call in server.generator.calls[1:])
    assert "<think>why</think>yes" in same
    assert "<think></think>yes" in other
    assert "<think></think>yes" in owner


class OtherEnd(StubGenerator):
    """Ends each answer with another end token of its model."""

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        async for event in super().stream(prompt, params, options):
            yield replace(event, token=77) if event.finish is FinishReason.STOP else event


def test_turns_with_another_end_token_are_replayed(tokenizer: Tokenizer) -> None:
    said = tokenizer.encode_text("why</think>yes", trusted=True)
    server = Server(tokenizer, OtherEnd([*said, tokenizer.eos_id]))
    message = server.answer(tools=TOOLS)["choices"][0]["message"]
    assert (message.pop("reasoning_content"), message["content"]) == ("why", "yes")
    server.answer(tools=TOOLS, messages=[USER, message, USER])
    first, second = (call.prompt for call in server.generator.calls)
    assert second[: len(first) + len(said) + 1] == [*first, *said, tokenizer.eos_id]


@pytest.mark.parametrize("stream", [False, True])
def test_busy_is_429(serve: Converse, stream: bool) -> None:
    def script(prompt: object, params: object) -> list[int]:
        raise BusyError(7)

    server = serve(script)
    response = server.post(stream=stream)
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")
    backend = server.app.state.backend
    assert (backend.running, backend.metrics.finished) == (0, {})
    assert "7 requests are waiting" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_engine_that_finds_the_prompt_too_long(serve: Converse, stream: bool) -> None:
    def script(prompt: object, params: object) -> list[int]:
        raise ContextLengthError(70, 60)

    response = serve(script).post(stream=stream)
    assert response.status_code == 400
    assert "maximum context length is 60 tokens" in response.json()["error"]["message"]


def test_too_many_at_once(serve: Converse) -> None:
    server = serve("why</think>x", delay=0.05, settings={"max_requests": 2})

    async def use(client: Any) -> list[Any]:
        calls = (client.chat.completions.create(model=MODEL, messages=[USER]) for _ in range(3))
        return await asyncio.gather(*calls, return_exceptions=True)

    results = server.sdk(use)
    assert [getattr(result, "status_code", 200) for result in results].count(429) == 1
    assert server.post().status_code == 200  # the others gave their places back
    assert server.app.state.backend.running == 0


def test_comments_tell_how_far_the_prompt_is(serve: Converse) -> None:
    class Slow:
        context_length = 100

        async def stream(self, prompt: Any, params: Any, options: Any = None) -> AsyncGenerator[TokenEvent, None]:
            assert options.progress
            yield TokenEvent(None, progress=PromptProgress(8, 16, 4))
            await asyncio.sleep(0.3)
            yield TokenEvent(None, FinishReason.STOP)

    server = serve("x", settings={"keep_alive": 0.1})
    server.app.state.backend.generator = Slow()
    with listening(server) as url:
        text = httpx.post(f"{url}/chat/completions", json={"messages": [USER], "stream": True}).text
    assert ": keep-alive, prompt 8/16 tokens\n\n" in text
    assert '"cached_tokens":4' in text


@pytest.mark.parametrize(("model", "deprecated"), [("deepseek-reasoner", True), ("deepseek-v4-pro", False)])
def test_aliases(serve: Converse, capsys: pytest.CaptureFixture[str], model: str, deprecated: bool) -> None:
    server = serve(THOUGHT)
    for stream in (False, True):
        response = server.post(model=model, stream=stream)
        assert ("deprecation" in response.headers) is deprecated
    assert server.answer(model=model)["model"] == model
    assert server.answer(model="claude-sonnet-4-5[1m]")["choices"][0]["message"]["reasoning_content"]
    assert ("deprecated_model" in capsys.readouterr().err) is deprecated


def test_any_model(serve: Converse) -> None:
    assert serve("x", settings={"any_model": True}).answer(model="gpt-9")["model"] == "gpt-9"


def test_template_options_switch_thinking(serve: Converse) -> None:
    for name in ("thinking", "enable_thinking"):
        message = serve("x").answer(chat_template_kwargs={name: False})["choices"][0]["message"]
        assert "reasoning_content" not in message


@pytest.mark.parametrize("failing", [False, True])
def test_silence_of_a_whole_answer_is_filled_with_line_breaks(serve: Converse, failing: bool) -> None:
    options: dict[str, Any] = {"error": "broken", "ended": False} if failing else {}
    server = serve("x", delay=0.2, settings={"keep_alive": 0.05}, **options)
    with listening(server) as url:
        response = httpx.post(f"{url}/chat/completions", json={"messages": [USER], **OFF})
    assert response.status_code == 200
    assert response.text.startswith("\n\n")
    assert ("error" in response.json()) is failing
