"""Every failure is the official JSON error, naming the field and what it may be."""

import re
from typing import Any

import httpx
import openai
import pytest

from dsv4.encoding import Tokenizer
from dsv4.engine.validation import check_params
from dsv4.generation import SamplingParams
from dsv4.server.dialects.chat.request import UNSUPPORTED
from tests.server.conftest import MODEL, Converse

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


def check(response: httpx.Response, status: int, param: str | None, pattern: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert re.search(pattern, error["message"]), error["message"]
    return error


@pytest.mark.parametrize(
    ("fields", "param", "pattern"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'latest_reminder', got 'robot'"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content", "required for role user"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "string or a list"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}], "unsupported": "error"},
            "messages[0].content",
            "part 0: this model reads text only, got 'image_url'",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "preceding message with 'tool_calls'"),
        (
            {"messages": [{"role": "assistant", "content": "x", "prefix": True}, USER]},
            "messages",
            "prefix: only for a last message",
        ),
        ({"temperature": 3}, "temperature", r"\[0, 2\], got 3"),
        ({"temperature": "hot"}, "temperature", "valid number, got 'hot'"),
        ({"top_p": 0}, "top_p", r"\(0, 1\], got 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1, got 0"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer, got 1.5"),
        ({"seed": 2**63}, "seed", r"must be in \["),
        ({"stop": ["x"] * 17}, "stop", "at most 16 strings, got 17"),
        ({"stop": [""]}, "stop", "must not be empty"),
        ({"stop": ["a", 1]}, "stop[1]", "valid string"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", r"\[0, 20\], got 21"),
        ({"top_logprobs": 2}, "top_logprobs", "only allowed with logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed with stream"),
        (
            {"thinking": {"type": "maybe"}},
            "thinking.type",
            "'enabled', 'disabled' or 'adaptive', got 'maybe'",
        ),
        ({"thinking": 1}, "thinking", "got 1"),
        ({"reasoning_effort": "banana"}, "reasoning_effort", "'max' or 'ultra', got 'banana'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'function', got 'web_search'"),
        ({"tools": [{"type": "function", "function": {"name": 'a"b'}}]}, "tools[0].function.name", "without quotes"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "unique, got 'f' twice"),
        ({"tools": [TOOL] * 4097}, "tools", "at most 4,096 are accepted, got 4,097"),
        ({"n": 129}, "n", r"must be in \[1, 128\], got 129"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tool_choice": "sometimes"}, "tool_choice", "a function by name or allowed_tools, got 'sometimes'"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            "no function is named 'g'",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", "got 'xml'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "odd"}}}},
            "response_format",
            "odd",
        ),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids and numbers, got 'x'"),
        ({"logit_bias": {"5": 101}}, "logit_bias", r"\[-100, 100\], got 101"),
        ({"presence_penalty": 3}, "presence_penalty", r"\[-2, 2\], got 3"),
        ({"min_p": 2}, "min_p", r"\[0, 1\], got 2"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
    ],
)
def test_wrong_field_is_named(serve: Converse, fields: dict[str, Any], param: str, pattern: str) -> None:
    server = serve("x")
    error = check(server.post(**fields), 400, param, pattern)
    assert error["type"] == "invalid_request_error"
    assert server.generator.calls == []


def test_harmless_values_of_unsupported_fields_pass(serve: Converse) -> None:
    for name, values in UNSUPPORTED:
        for value in values:
            assert serve("x").post(**{name: value}).status_code == 200, (name, value)


@pytest.mark.parametrize("body", [b"", b"{", b'{"messages": ', b"\xff", b"[" * 100_000])
def test_body_that_is_no_json(serve: Converse, body: bytes) -> None:
    response = serve("x").request("POST", "/chat/completions", content=body)
    check(response, 400, "body", "not valid JSON")


def test_body_that_is_no_object(serve: Converse) -> None:
    check(serve("x").request("POST", "/chat/completions", json=[1]), 400, "body", "JSON object")


def test_missing_messages(serve: Converse) -> None:
    check(serve("x").request("POST", "/chat/completions", json={}), 400, "messages", "required")


def test_unknown_model_lists_what_exists(serve: Converse) -> None:
    error = check(serve("x").post(model="gpt-9"), 404, "model", "'gpt-9' does not exist.*tiny.*deepseek-chat")
    assert error["code"] == "model_not_found"


def test_context_overflow_has_both_numbers(serve: Converse) -> None:
    server = serve("x", context_length=50)
    response = server.post(messages=[{"role": "user", "content": "Hello " * 100}], max_tokens=10)
    error = check(response, 400, "messages", r"maximum context length is 50 tokens\. However, you requested \d+")
    assert error["code"] == "context_length_exceeded"
    assert server.generator.calls == []


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_routes(serve: Converse, method: str, path: str, status: int, code: str) -> None:
    response = serve("x").request(method, path)
    assert check(response, status, None, path)["code"] == code


def test_sdk_raises_its_own_errors(serve: Converse) -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        messages: Any = [USER]
        with pytest.raises(openai.BadRequestError, match=r"temperature: must be in \[0, 2\]") as caught:
            await client.chat.completions.create(model=MODEL, messages=messages, temperature=3)
        assert caught.value.param == "temperature"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nope", messages=messages)

    serve("x").sdk(use)


def test_a_field_that_only_the_engine_can_judge_is_named(serve: Converse) -> None:
    def judged(prompt: object, params: SamplingParams) -> list[int]:
        check_params(params, 100)
        return [1]

    for fields in ({}, {"stream": True}):
        check(serve(judged).post(logit_bias={"100": 1}, **fields), 400, "logit_bias", r"must be in \[0, 100\), got 100")


def test_a_refusal_about_no_field_names_none(serve: Converse) -> None:
    def refused(prompt: object, params: object) -> list[int]:
        raise ValueError("constraint cannot be started: too large")

    check(serve(refused).post(), 400, None, "^constraint cannot be started")


@pytest.mark.parametrize("prompt", [[5, 10**9], [-1], [5, "b"]])
def test_prompts_that_are_no_ids_are_told_the_range(serve: Converse, tokenizer: Tokenizer, prompt: list[Any]) -> None:
    response = serve("x").request("POST", "/completions", json={"prompt": prompt})
    check(response, 400, "prompt", rf"token ids in \[0, {tokenizer.vocab_size}\), got ")


@pytest.mark.parametrize(
    "items", [[{"type": "web_search_call"}, {"type": "x"}], [{"type": "reasoning", "summary": []}]]
)
@pytest.mark.parametrize("fields", [{}, {"instructions": "Be brief."}])
def test_input_without_anything_for_the_model(serve: Converse, items: list[Any], fields: dict[str, Any]) -> None:
    server = serve("x</think>y")
    check(server.request("POST", "/responses", json={"input": items, **fields}), 400, "input", items[0]["type"])
    beside = {"input": [*items, {"role": "user", "content": "Hi"}], **fields}
    assert server.request("POST", "/responses", json=beside).status_code == 200


def test_engine_error_is_500(serve: Converse) -> None:
    server = serve("x", ended=False, error="out of memory")
    error = check(server.post(), 500, None, "out of memory")
    assert error["type"] == "server_error"
    assert server.app.state.backend.metrics.finished == {"error": 1}


def test_engine_error_ends_a_stream_as_event(serve: Converse) -> None:
    server = serve("some text", ended=False, error="out of memory")

    async def use(client: openai.AsyncOpenAI) -> None:
        messages: Any = [USER]
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        with pytest.raises(openai.APIError, match="out of memory"):
            async for _ in stream:
                pass

    server.sdk(use)
    assert "[DONE]" not in server.post(stream=True).text


def test_unforeseen_failure_is_json_without_details(serve: Converse) -> None:
    def broken(prompt: object, params: object) -> list[int]:
        raise KeyError("secret")

    server = serve(broken)
    error = check(server.post(), 500, None, "^internal error: KeyError$")
    assert error["code"] == "internal_error"
    last = server.post(stream=True).text.rstrip().split("\n\n")[-1]
    assert "internal error: KeyError" in last


def test_token_unknown_to_the_tokenizer_is_an_error(serve: Converse) -> None:
    check(serve([10**6]).post(), 500, None, "token id 1000000 is not in the vocabulary")
