"""The Responses interface with OpenAI's SDK and as raw events, with requests as Codex sends them."""

import json
from typing import Any

import httpx
import openai
import pytest

from dsv4.encoding import Tokenizer
from dsv4.generation import BusyError
from dsv4.server.dialects.request import owner_name
from tests.server.conftest import MODEL, Converse, Server
from tests.server.test_chat import CALL, THOUGHT

FUNCTION = {
    "type": "function",
    "name": "weather",
    "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}
PATCH = (
    CALL.replace("weather", "apply_patch")
    .replace('"city"', '"input"')
    .replace('<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n', "")
)


def post(server: Server, path: str = "/v1/responses", **fields: Any) -> httpx.Response:
    return server.request("POST", path, json={"model": MODEL, "input": "Hi", **fields})


def events(server: Server, **fields: Any) -> list[dict[str, Any]]:
    """A stream's events, after checking their frame and numbers."""
    response = post(server, stream=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def message(role: str, text: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


@pytest.mark.parametrize("path", ["/responses", "/v1/responses"])
def test_whole(serve: Converse, path: str) -> None:
    answer = post(serve(THOUGHT, reused=2), path).json()
    thought, text = answer["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "six times seven"}]
    assert text["content"][0]["text"] == "The answer is forty-two 💡."
    assert (answer["object"], answer["status"], answer["error"]) == ("response", "completed", None)
    usage = answer["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] == 2
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_stream_events(serve: Converse) -> None:
    found = events(serve("why" + CALL), tools=[FUNCTION])
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert kinds[-1] == "completed"
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call"]
    assert done == found[-1]["response"]["output"]
    assert all(item["status"] == "completed" for item in done)
    assert (done[2]["name"], done[2]["arguments"]) == ("weather", '{"city": "Paris", "days": 3}')
    for name, item, field in (
        ("reasoning_text.delta", done[0], "text"),
        ("output_text.delta", done[1], "text"),
        ("function_call_arguments.delta", done[2], "arguments"),
    ):
        own = [event for event in found if event["type"] == f"response.{name}"]
        expected = item[field] if field == "arguments" else item["content"][0][field]
        assert "".join(event["delta"] for event in own) == expected
        assert {event["item_id"] for event in own} == {item["id"]}


def test_sdk(serve: Converse) -> None:
    async def use(client: openai.AsyncOpenAI) -> tuple[Any, Any]:
        tools: Any = [FUNCTION]
        whole = await client.responses.create(model=MODEL, input="Hi", tools=tools)
        async with client.responses.stream(model=MODEL, input="Hi", tools=tools) as stream:
            async for _ in stream:
                pass
            return whole, await stream.get_final_response()

    for answer in serve("why" + CALL).sdk(use):
        assert answer.output_text == "Let me see."
        assert answer.output[-1].arguments == '{"city": "Paris", "days": 3}'


def test_codex_round_trip(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve("why" + CALL)
    start = [
        message("developer", "Rules."),
        message("developer", "More."),
        message("user", "One"),
        message("user", "2"),
    ]
    fields: dict[str, Any] = {
        "tools": [
            FUNCTION,
            {"type": "namespace", "name": "files", "tools": [{"type": "function", "name": "read"}]},
            {"type": "web_search"},
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "thread",
        "text": {"verbosity": "low"},
        "client_metadata": {"a": "b"},
    }
    first = events(server, input=start, **fields)[-1]["response"]
    call = first["output"][-1]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    note = message("developer", "A hook says hello.")
    events(server, input=[*start, *first["output"], note, result], **fields)
    before, after = server.generator.calls
    script = tokenizer.encode_text("why" + CALL, trusted=True)
    assert after.prompt[: len(before.prompt) + len(script)] == [*before.prompt, *script]
    text = tokenizer.decode(after.prompt)
    assert text.index("sunny") < text.index("A hook says hello.")
    assert all(f'{{"name": "{name}"' in text for name in ("weather", "files__read", "apply_patch"))
    assert "web_search" not in text


def test_tool_of_a_namespace(serve: Converse) -> None:
    tools = [{"type": "namespace", "name": "mcp__sky__", "tools": [FUNCTION]}]
    server = serve(CALL.replace('"weather"', '"mcp__sky__weather"'))
    item = post(server, tools=tools).json()["output"][-1]
    assert (item["name"], item["namespace"]) == ("weather", "mcp__sky__")
    back = [message("user", "Hi"), item, {"type": "function_call_output", "call_id": item["call_id"], "output": "x"}]
    assert post(server, tools=tools, input=back).status_code == 200
    assert 'invoke name="mcp__sky__weather"' in server.tokenizer.decode(server.generator.calls[-1].prompt)


def test_custom_tool(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(PATCH)
    tools = [{"type": "custom", "name": "apply_patch"}]
    found = events(server, tools=tools)
    item = found[-1]["response"]["output"][-1]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "apply_patch", "Paris")
    assert "response.custom_tool_call_input.done" in {event["type"] for event in found}
    output = {
        "type": "custom_tool_call_output",
        "call_id": item["call_id"],
        "output": [{"type": "input_text", "text": "ok"}],
    }
    post(server, tools=tools, input=[message("user", "Hi"), item, output])
    assert "<tool_result>ok</tool_result>" in tokenizer.decode(server.generator.calls[-1].prompt)


@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_call_is_not_done(serve: Converse, tokenizer: Tokenizer, stream: bool) -> None:
    limit = len(tokenizer.encode_text(CALL[: CALL.index("Paris")], trusted=True))
    fields: dict[str, Any] = {"tools": [FUNCTION], "max_output_tokens": limit}
    server = serve(CALL)
    answer = events(server, **fields)[-1]["response"] if stream else post(server, **fields).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["type"] for item in answer["output"]] == ["message"]


def test_fields(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve('{"n": 1}')
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    answer = post(
        server,
        instructions="Rules.",
        reasoning={"effort": "none"},
        temperature=0,
        top_p=0.5,
        top_logprobs=2,
        text={"format": {"type": "json_schema", "name": "x", "schema": schema}},
        user="ann",
    ).json()
    call = server.generator.calls[0]
    assert (call.params.temperature, call.params.top_p, call.params.top_logprobs) == (0, 0.5, 2)
    assert call.params.constraint is not None
    assert call.options.owner == owner_name("", "ann")
    assert tokenizer.decode(call.prompt).startswith("<｜begin▁of▁sentence｜>Rules.")
    (item,) = answer["output"]
    assert len(item["content"][0]["logprobs"][0]["top_logprobs"]) == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [message("robot", "x")]}, "input[0].role"),
        ({"input": [message("user", "x", "input_image")], "unsupported": "error"}, "input[0].content"),
        ({"input": [message("user", "x"), {"type": "item_reference", "id": "fc_1"}]}, "input[1]"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools[1]"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ],
)
def test_wrong_fields(serve: Converse, fields: dict[str, Any], param: str) -> None:
    response = post(serve("x"), **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_forced_call(serve: Converse) -> None:
    server = serve(CALL, settings={"free_calls": True})
    post(server, tools=[FUNCTION], tool_choice={"type": "function", "name": "weather"})
    assert server.generator.calls[0].params.constraint is not None


def test_input_tokens(serve: Converse) -> None:
    server = serve("x")
    count = post(server, "/v1/responses/input_tokens").json()
    assert count == {"object": "response.input_tokens", "input_tokens": post(server).json()["usage"]["input_tokens"]}


def test_failures(serve: Converse) -> None:
    def script(prompt: object, params: object) -> list[int]:
        raise BusyError(7)

    assert post(serve(script), stream=True).status_code == 429
    last = events(serve("some", ended=False, error="out of memory"))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["message"] == "out of memory"
