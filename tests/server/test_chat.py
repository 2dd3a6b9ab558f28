"""Answers: thinking, streaming, usage, limits, stop strings."""

from typing import Any

import openai
import pytest

from dsv4.encoding import Tokenizer
from tests.server.conftest import MODEL, Converse, joined

THOUGHT = "six times seven</think>The answer is forty-two 💡."
CALL = (
    "</think>Let me see.\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="weather">\n'
    '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)
HELLO = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def test_thinking_is_on_by_default(serve: Converse) -> None:
    answer = serve(THOUGHT).answer()
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == "six times seven"
    assert message["content"] == "The answer is forty-two 💡."
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "off",
    [
        {"thinking": {"type": "disabled"}},
        {"reasoning_effort": "none"},
        {"thinking": {"type": "disabled"}, "reasoning_effort": "max"},
        {"model": "deepseek-chat"},
    ],
)
def test_thinking_off_gives_no_reasoning(serve: Converse, tokenizer: Tokenizer, off: dict[str, Any]) -> None:
    server = serve("Plain.")
    message = server.answer(**off)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Plain."}
    assert tokenizer.decode(server.generator.calls[0].prompt).endswith("<｜Assistant｜></think>")


@pytest.mark.parametrize(("effort", "hard"), [("low", False), ("high", False), ("xhigh", False), ("max", True)])
def test_effort_reaches_the_prompt(serve: Converse, tokenizer: Tokenizer, effort: str, hard: bool) -> None:
    server = serve(THOUGHT)
    server.answer(reasoning_effort=effort)
    prompt = tokenizer.decode(server.generator.calls[0].prompt)
    assert ("Absolute maximum" in prompt) is hard
    assert prompt.endswith("<｜Assistant｜><think>")


@pytest.mark.parametrize(
    ("script", "fields"),
    [
        (THOUGHT, {}),
        ("naïve café 日本語", {"thinking": {"type": "disabled"}}),
        (THOUGHT, {"stop": "forty"}),
        (THOUGHT, {"max_tokens": 3}),
        (THOUGHT, {"logprobs": True, "top_logprobs": 2}),
    ],
)
def test_stream_equals_the_whole_answer(serve: Converse, script: str, fields: dict[str, Any]) -> None:
    server = serve(script)
    whole, chunks = server.answer(**fields), server.chunks(**fields)
    choice = whole["choices"][0]
    for name in ("content", "reasoning_content"):
        assert joined(chunks, name) == choice["message"].get(name, "")
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]
    if "logprobs" in fields:
        for name in ("content", "reasoning_content"):
            parts = [chunk["choices"][0]["logprobs"] or {} for chunk in chunks]
            assert [entry for part in parts for entry in part.get(name, [])] == choice["logprobs"][name]


def test_stream_shape(serve: Converse) -> None:
    chunks = serve(THOUGHT).chunks(stream_options={"include_usage": True})
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": None, "reasoning_content": ""}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert [chunk["usage"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    reasoning = [index for index, choice in enumerate(choices) if choice["delta"].get("reasoning_content")]
    content = [index for index, choice in enumerate(choices) if choice["delta"].get("content")]
    assert max(reasoning) < min(content)


def test_usage_counts_tokens(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(THOUGHT)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <｜User｜>"}]
    usage = server.answer(messages=messages)["usage"]
    prompt = tokenizer.encode_messages(messages, "thinking", reasoning_effort="high", mode="safe")
    assert server.generator.calls[0].prompt == prompt
    reasoning = len(tokenizer.encode_text("six times seven"))
    assert usage["prompt_tokens"] == len(prompt) == usage["prompt_cache_miss_tokens"]
    assert usage["prompt_cache_hit_tokens"] == usage["prompt_tokens_details"]["cached_tokens"] == 0
    # the end token was sampled like any other
    assert usage["completion_tokens"] == len(tokenizer.encode_text(THOUGHT, trusted=True)) + 1
    assert usage["completion_tokens_details"]["reasoning_tokens"] == reasoning
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_token_limit(serve: Converse, field: str) -> None:
    answer = serve(THOUGHT).answer(**{field: 4})
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["choices"][0]["message"]["content"] == ""


def test_limit_is_cut_to_the_context(serve: Converse) -> None:
    server = serve(THOUGHT, context_length=100)
    assert server.answer(max_tokens=384_000)["choices"][0]["finish_reason"] == "stop"
    call = server.generator.calls[0]
    assert call.params.max_tokens == 100 - len(call.prompt)


def test_sampling_fields_arrive(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(THOUGHT)
    off = {"thinking": {"type": "disabled"}}
    server.answer(temperature=0, top_p=0.5, seed=7, user="u", metadata={"a": "b"}, store=True, unknown=[1], **off)
    params = server.generator.calls[0].params
    assert (params.temperature, params.top_p, params.seed) == (0, 0.5, 7)
    assert params.stop_ids == (tokenizer.eos_id,)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9}),
        ("/v1/responses", {"input": "Hi"}),
    ],
)
def test_ignore_eos_arrives(serve: Converse, path: str, body: dict[str, Any]) -> None:
    server = serve(THOUGHT)
    for value in (True, False, None):
        told = server.request("POST", path, json={"model": "tiny", **body, "ignore_eos": value})
        assert told.status_code == 200, told.text
    assert [call.params.ignore_eos for call in server.generator.calls] == [True, False, False]
    assert server.request("POST", path, json={"model": "tiny", **body, "ignore_eos": "yes"}).status_code == 400


@pytest.mark.parametrize(
    ("stop", "content"),
    [
        ("forty-two", "The answer is "),
        (["nowhere", "er is"], "The answ"),
        ("times", "The answer is forty-two 💡."),  # occurs in the reasoning only
        ("💡", "The answer is forty-two "),
        (["The", "answer"], ""),
        ([], "The answer is forty-two 💡."),
    ],
)
def test_stop_strings(serve: Converse, tokenizer: Tokenizer, stop: str | list[str], content: str) -> None:
    server = serve(THOUGHT)
    answer = server.answer(stop=stop)
    assert answer["choices"][0]["message"]["content"] == content
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert server.generator.calls[0].closed_early is (stop not in ("times", []))


def test_stop_string_across_single_byte_tokens(serve: Converse, tokenizer: Tokenizer) -> None:
    single = [tokenizer.encode_text(char)[0] for char in "abcabd!"]
    answer = serve([*single, tokenizer.eos_id]).answer(stop="abd", thinking={"type": "disabled"})
    assert answer["choices"][0]["message"]["content"] == "abc"


def test_logprobs_cover_the_content(serve: Converse) -> None:
    choice = serve(THOUGHT).answer(logprobs=True, top_logprobs=3)["choices"][0]
    for name in ("content", "reasoning_content"):
        entries = choice["logprobs"][name]
        assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == choice["message"][name]
        assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 3 for entry in entries)
        assert all(entry["top_logprobs"][0]["bytes"] == entry["bytes"] for entry in entries)


def test_logprobs_end_with_the_text_before_a_stop_string(serve: Converse, tokenizer: Tokenizer) -> None:
    single = [tokenizer.encode_text(char)[0] for char in "xyzEND"]
    server = serve([*single, tokenizer.eos_id])
    choice = server.answer(stop="END", logprobs=True, thinking={"type": "disabled"})["choices"][0]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["x", "y", "z"]


def test_no_logprobs_unless_asked(serve: Converse) -> None:
    assert serve(THOUGHT).answer()["choices"][0]["logprobs"] is None


def test_tool_call(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(CALL)
    answer = server.answer(tools=TOOLS, tool_choice="auto")
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris", "days": 3}'}
    assert call["type"] == "function"
    assert call["id"].isalnum()
    prompt = tokenizer.decode(server.generator.calls[0].prompt)
    assert '{"name": "weather", "description": "", "parameters": {"type": "object"}}' in prompt


def test_tool_call_streamed(serve: Converse) -> None:
    chunks = serve(CALL).chunks(tools=TOOLS)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert calls[0]["id"].isalnum()
    assert calls[0]["function"] == {"name": "weather", "arguments": ""}
    assert all(set(call) == {"index", "function"} and call["index"] == 0 for call in calls[1:])
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert arguments == '{"city": "Paris", "days": 3}'
    assert joined(chunks, "content") == "Let me see."
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("fields", [{"tools": TOOLS, "tool_choice": "none"}, {}])
def test_calls_nobody_asked_for_are_dropped(serve: Converse, tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    server = serve(CALL)
    choice = server.answer(**fields)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == "Let me see."
    assert "tool_calls" not in choice["message"]
    # the head of the prompt stays what it was while calls are not wanted
    assert ("weather" in tokenizer.decode(server.generator.calls[0].prompt)) == bool(fields)


def test_cut_call_is_not_returned(serve: Converse, tokenizer: Tokenizer) -> None:
    limit = len(tokenizer.encode_text(CALL[: CALL.index("Paris")], trusted=True))
    choice = serve(CALL).answer(tools=TOOLS, max_tokens=limit)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"]


def test_round_trip_with_tool_result(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(CALL)
    first = server.answer(tools=TOOLS)["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "sunny"}
    history = [{"role": "user", "content": [{"type": "text", "text": "Weather?"}]}, first, result]
    server.answer(tools=TOOLS, messages=history)
    prompt = tokenizer.decode(server.generator.calls[1].prompt)
    assert prompt.count('<｜DSML｜invoke name="weather">') == 1
    assert prompt.endswith("<tool_result>sunny</tool_result><｜Assistant｜><think>")


def test_roles_that_the_encoding_lacks(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(THOUGHT)
    messages = [
        {"role": "developer", "content": "Rules."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": None, "reasoning": "hm"},
        {"role": "latest_reminder", "content": "2026-11-26"},
        {"role": "system", "content": "Last word."},
    ]
    server.answer(messages=messages)
    prompt = tokenizer.decode(server.generator.calls[0].prompt)
    assert prompt.startswith("<｜begin▁of▁sentence｜>Rules.\n\nLast word.<｜User｜>One<｜Assistant｜></think>")
    assert prompt.endswith("<｜latest_reminder｜>2026-11-26<｜Assistant｜><think>")


def test_sdk_whole_and_streamed(serve: Converse) -> None:
    server = serve(THOUGHT)
    messages: Any = [{"role": "user", "content": "Hi"}]

    async def use(client: openai.AsyncOpenAI) -> tuple[Any, list[Any]]:
        whole = await client.chat.completions.create(model=MODEL, messages=messages, logprobs=True)
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
        )
        return whole, [chunk async for chunk in stream]

    whole, chunks = server.sdk(use)
    message = whole.choices[0].message
    assert message.reasoning_content == "six times seven"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert [chunk.usage for chunk in chunks if chunk.usage] == [whole.usage]
