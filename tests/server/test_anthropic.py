"""Anthropic's messages with their SDK and as raw events."""

import json
from typing import Any

import anthropic
import httpx
import pytest

from dsv4.encoding import Tokenizer
from dsv4.generation import BusyError
from tests.server.conftest import Converse, Server, listening
from tests.server.test_chat import CALL, THOUGHT

USER = {"role": "user", "content": "Hi"}
OFF = {"thinking": {"type": "disabled"}}
TOOL = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "cache_control": {"type": "ephemeral"},
}
CLAUDE = "claude-fable-9"


def post(server: Server, path: str = "/v1/messages?beta=true", **fields: Any) -> httpx.Response:
    body = {"model": CLAUDE, "max_tokens": 500, "messages": [USER], **fields}
    return server.request("POST", path, json=body)


def events(server: Server, **fields: Any) -> list[dict[str, Any]]:
    """A stream's events, after checking their frame."""
    response = post(server, stream=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def prompt_of(server: Server, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(server.generator.calls[-1].prompt)


@pytest.mark.parametrize("path", ["/messages", "/v1/messages", "/anthropic/messages", "/anthropic/v1/messages"])
def test_message(serve: Converse, path: str) -> None:
    answer = post(serve(THOUGHT, reused=2), path).json()
    thought, text = answer["content"]
    assert thought["type"] == "thinking"
    assert (thought["thinking"], text["text"]) == ("six times seven", "The answer is forty-two 💡.")
    assert thought["signature"]
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", CLAUDE)
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    assert answer["id"].startswith("msg_")
    assert answer["usage"]["cache_read_input_tokens"] == 2


def test_stream_events(serve: Converse) -> None:
    found = events(serve(CALL.replace("</think>", "why</think>")), tools=[TOOL])
    kinds = [event["type"] for event in found]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    blocks = [event["content_block"]["type"] for event in found if event["type"] == "content_block_start"]
    assert blocks == ["thinking", "text", "tool_use"]
    opened: set[int] = set()
    for event in found:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(opened)
                opened.add(event["index"])
                current = event["index"]
            case "content_block_delta" | "content_block_stop":
                assert event["index"] == current
    deltas = [event["delta"] for event in found if event["type"] == "content_block_delta"]
    assert [delta["type"] for delta in deltas].count("signature_delta") == 1
    pieces = [delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta"]
    assert len(pieces) > 3
    assert json.loads("".join(pieces)) == {"city": "Paris", "days": 3}
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] > 10


def test_sdk_tool_loop(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(CALL.replace("</think>", "why</think>"), reused=3)
    messages: Any = [USER]
    tools: Any = [TOOL]

    async def use(client: anthropic.AsyncAnthropic) -> Any:
        async with client.messages.stream(
            model=CLAUDE, max_tokens=900, messages=messages, tools=tools, thinking={"type": "adaptive"}
        ) as stream:
            return await stream.get_final_message()

    first = server.claude(use)
    thought, text, call = first.content
    assert (thought.thinking, text.text, call.input) == ("why", "Let me see.", {"city": "Paris", "days": 3})
    assert first.stop_reason == "tool_use"
    assert first.usage.cache_read_input_tokens == 3
    before = server.generator.calls[0]
    for content in ("sunny", [{"type": "text", "text": "sunny"}]):
        result = {"type": "tool_result", "tool_use_id": call.id, "content": content, "is_error": False}
        messages = [USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        server.claude(use)
        prompt = server.generator.calls[-1].prompt
        assert prompt[: len(before.prompt)] == before.prompt
        assert prompt_of(server, tokenizer).endswith("<tool_result>sunny</tool_result><｜Assistant｜><think>")
        script = tokenizer.encode_text(CALL.replace("</think>", "why</think>"), trusted=True)
        assert prompt[len(before.prompt) :][: len(script)] == script


@pytest.mark.parametrize(
    "fields",
    [
        OFF,
        {**OFF, "output_config": {"effort": "high"}},
        {"output_config": {"effort": "none"}},
        {"model": "deepseek-chat"},
    ],
)
def test_thinking_off(serve: Converse, fields: dict[str, Any]) -> None:
    assert [block["type"] for block in post(serve("Plain."), **fields).json()["content"]] == ["text"]


def test_effort(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(THOUGHT)
    post(server, output_config={"effort": "max"}, thinking={"type": "enabled", "budget_tokens": 5})
    assert "Absolute maximum" in prompt_of(server, tokenizer)


def test_system_and_its_billing_line(serve: Converse) -> None:
    server = serve("x")
    line = {"type": "text", "text": "x-anthropic-billing-header: cc_version=1;"}
    rest = [{"type": "text", "text": "One.", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "Two."}]
    post(server, system=[line, *rest])
    post(server, system=[{**line, "text": "x-anthropic-billing-header: cc_version=2;"}, *rest])
    post(server, system="One.\n\nTwo.")
    first, second, third = (call.prompt for call in server.generator.calls)
    assert first == second == third


def test_system_among_the_messages(serve: Converse) -> None:
    server = serve("x")
    answer = {"role": "assistant", "content": "ok"}
    for content in ([{"type": "text", "text": "Note.", "cache_control": {"type": "ephemeral"}}], "Note."):
        post(server, messages=[USER, {"role": "system", "content": content}, answer, USER])
    first, second = (call.prompt for call in server.generator.calls)
    assert first == second


def test_deferred_tools_leave_the_head_alone(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve("x")
    use = {"type": "tool_use", "id": "a", "name": "search", "input": {}}
    late = {"name": "late", "defer_loading": True, "input_schema": {"type": "object", "properties": {}}}
    search = {"name": "search", "input_schema": {"type": "object"}}
    found = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "tool_reference", "tool_name": "late"}]}
    post(server, tools=[search, TOOL])
    post(
        server,
        tools=[search, late, TOOL],
        messages=[USER, {"role": "assistant", "content": [use]}, {"role": "user", "content": [found]}],
    )
    first, second = (call.prompt for call in server.generator.calls)
    assert second[: len(first)] == first
    assert '{"name": "late"' in tokenizer.decode(second[len(first) :])


@pytest.mark.parametrize(
    ("choice", "mode"),
    [({"type": "any"}, True), ({"type": "tool", "name": "weather"}, True), ({"type": "auto"}, False)],
)
def test_tool_choice(serve: Converse, choice: dict[str, Any], mode: bool) -> None:
    server = serve(CALL, settings={"free_calls": True})
    post(server, tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}], tool_choice=choice)
    assert (server.generator.calls[0].params.constraint is not None) is mode


def test_tool_choice_none(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(CALL)
    answer = post(server, tools=[TOOL], tool_choice={"type": "none"}).json()
    assert [block["type"] for block in answer["content"]] == ["text"]
    assert "weather" in prompt_of(server, tokenizer)  # the head of the prompt stays what it was


def test_stop_sequence_and_limit(serve: Converse) -> None:
    answer = post(serve(THOUGHT), stop_sequences=["forty"]).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "forty")
    assert answer["content"][-1]["text"] == "The answer is "
    assert post(serve(THOUGHT), max_tokens=2).json()["stop_reason"] == "max_tokens"


def test_a_begun_answer_is_continued(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve("two")
    post(server, messages=[USER, {"role": "assistant", "content": "one "}], **OFF)
    assert prompt_of(server, tokenizer).endswith("</think>one ")


def test_count_tokens(serve: Converse) -> None:
    server = serve("x", context_length=60)
    fields: dict[str, Any] = {"model": CLAUDE, "messages": [USER], "tools": [TOOL]}
    response = server.request("POST", "/v1/messages/count_tokens?beta=true", json=fields)
    assert response.json()["input_tokens"] > 60  # also for what does not fit
    server = serve("x")
    usage = post(server, tools=[TOOL]).json()["usage"]
    assert response.json()["input_tokens"] == sum(usage[name] for name in usage if "input" in name)

    async def use(client: anthropic.AsyncAnthropic) -> Any:
        messages: Any = [USER]
        return await client.messages.count_tokens(model=CLAUDE, messages=messages)

    assert server.claude(use).input_tokens == len(serve_prompt(server))


def serve_prompt(server: Server) -> list[int]:
    post(server)
    return server.generator.calls[-1].prompt


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"messages": []}, "messages: .*at least 1"),
        (
            {"messages": [{"role": "user", "content": [{"type": 7}]}]},
            "messages\\[0\\].content\\[0\\].*an object with a type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "odd"}]}], "unsupported": "error"},
            "messages\\[0\\].content\\[0\\].*reads text only.*'odd'",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tool_choice": {"type": "any"}}, "there are no tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "no function is named 'other'"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_errors_have_their_shape(serve: Converse, fields: dict[str, Any], pattern: str) -> None:
    server = serve("x")
    response = post(server, **fields)
    body = response.json()
    assert response.status_code == 400
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert body["request_id"] == response.headers["request-id"]

    async def use(client: anthropic.AsyncAnthropic) -> None:
        messages: Any = [USER]
        with pytest.raises(anthropic.BadRequestError, match=pattern):
            await client.messages.create(model=CLAUDE, max_tokens=5, messages=messages, extra_body=fields)

    server.claude(use)


def test_overflow_words_that_claude_code_knows(serve: Converse) -> None:
    response = post(serve("x", context_length=20), messages=[{"role": "user", "content": "Hello " * 100}])
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("prompt is too long: ")
    assert response.json()["error"]["message"].endswith(" tokens > 20 maximum")


def test_busy_and_unknown_model(serve: Converse) -> None:
    def script(prompt: object, params: object) -> list[int]:
        raise BusyError(7)

    response = post(serve(script), stream=True)
    assert (response.status_code, response.json()["error"]["type"]) == (429, "rate_limit_error")
    response = post(serve("x"), model="gpt-9")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")


def test_failure_within_a_stream(serve: Converse) -> None:
    last = events(serve("some", ended=False, error="out of memory"))[-1]
    assert (last["type"], last["error"]["message"]) == ("error", "out of memory")


@pytest.mark.parametrize(("fields", "kind"), [({}, "thinking_delta"), (OFF, "text_delta")])
def test_silence_is_filled_with_empty_deltas(serve: Converse, fields: dict[str, Any], kind: str) -> None:
    server = serve("why</think>x" if not fields else "x", delay=0.8, settings={"keep_alive": 0.1})
    with listening(server) as url:
        text = httpx.post(f"{url}/v1/messages", json={"messages": [USER], "stream": True, **fields}).text
    found = [json.loads(line.removeprefix("data: ")) for line in text.split("\n") if line.startswith("data: ")]
    kinds = [event["type"] for event in found]
    assert kinds.count("ping") >= 2
    assert kinds[:4] == ["message_start", "content_block_start", "ping", "content_block_delta"]
    empty = next(event["delta"] for event in found if event["type"] == "content_block_delta")
    assert empty["type"] == kind
    assert not empty[kind.split("_")[0]]
    assert kinds[-1] == "message_stop"
