"""Calls are whole or visibly broken: three interfaces, streamed and whole, raw and with the official SDKs."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv4.encoding import Tokenizer
from dsv4.testing.stub import StubGenerator
from tests.server.conftest import MODEL, Converse, Server

D = "｜DSML｜"
X = f'<{D}parameter name="x" string="true">a</{D}parameter>\n'
OPEN, CLOSE = f"\n\n<{D}tool_calls>\n", f"</{D}tool_calls>"
SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}, "n": {"type": "integer"}}}
ASK = [{"role": "user", "content": "Q"}]


def invoke(inner: str, name: str = "f") -> str:
    return f'<{D}invoke name="{name}">\n{inner}</{D}invoke>\n'


# what the model writes, and whether a call is begun before it breaks
BROKEN = {
    "unknown name": (OPEN + invoke(X, "rm") + CLOSE, False),
    "no parameters but text": (OPEN + invoke("city: Rome\n") + CLOSE, False),
    "empty": (OPEN + CLOSE, False),
    "twice": (OPEN + invoke(X + X) + CLOSE, True),
    "text between": (OPEN + invoke(X + "and" + X) + CLOSE, True),
    "not closed": (OPEN + f'<{D}invoke name="f">\n{X}', True),
    "second broken": (OPEN + invoke(X) + invoke(X, "rm") + CLOSE, True),
}
broken = pytest.mark.parametrize(("text", "begun"), BROKEN.values(), ids=BROKEN)


def chat(server: Server, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer whole, and the streamed one put together: content, calls, finish."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    choice = server.answer(tools=tools, **fields)["choices"][0]
    calls = [call["function"] for call in choice["message"].get("tool_calls", [])]
    whole = {"content": choice["message"]["content"], "calls": calls, "finish": choice["finish_reason"]}
    streamed: dict[str, Any] = {"content": "", "calls": []}
    for chunk in server.chunks(tools=tools, **fields):
        delta = chunk["choices"][0]["delta"]
        streamed["content"] += delta.get("content") or ""
        for part in delta.get("tool_calls", []):
            if part["index"] == len(streamed["calls"]):
                streamed["calls"].append({"name": part["function"]["name"], "arguments": ""})
            streamed["calls"][part["index"]]["arguments"] += part["function"]["arguments"]
        streamed["finish"] = chunk["choices"][0]["finish_reason"]
    return whole, streamed


def events(server: Server, path: str, **fields: Any) -> list[dict[str, Any]]:
    text = server.request("POST", path, json={"stream": True, **fields}).text
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]


@broken
def test_chat(serve: Converse, text: str, begun: bool) -> None:
    whole, streamed = chat(serve("Why</think>Text" + text))
    assert whole["finish"] == streamed["finish"] == ("length" if begun else "stop")
    assert whole["content"] == streamed["content"]
    assert whole["content"].startswith("Text")
    assert "invoke" in whole["content"] or "tool_calls" in whole["content"]
    assert len(streamed["calls"]) >= len(whole["calls"])
    for call in streamed["calls"][len(whole["calls"]) :]:
        with pytest.raises(ValueError, match="line"):
            json.loads(call["arguments"])


@broken
def test_messages(serve: Converse, text: str, begun: bool) -> None:
    server = serve("Why</think>Text" + text)
    fields: Any = {"model": MODEL, "max_tokens": 900, "messages": ASK, "tools": [{"name": "f", "input_schema": SCHEMA}]}
    whole = server.request("POST", "/v1/messages", json=fields).json()
    seen = events(server, "/v1/messages", **fields)
    reason = next(event["delta"]["stop_reason"] for event in seen if event["type"] == "message_delta")
    assert reason == whole["stop_reason"] == ("max_tokens" if begun else "end_turn")
    opened = [event["index"] for event in seen if event["type"] == "content_block_start"]
    assert opened == [event["index"] for event in seen if event["type"] == "content_block_stop"]

    async def use(client: Any) -> Any:
        async with client.messages.stream(**fields) as stream:
            return await stream.get_final_message()

    message = server.claude(use)
    texts = [block.text for block in message.content if block.type == "text"]
    assert "".join(texts) == "".join(block["text"] for block in whole["content"] if block["type"] == "text")
    assert message.stop_reason == reason


def test_a_stop_string_in_a_broken_block_does_not_hide_the_call(serve: Converse) -> None:
    server = serve("Why</think>Text" + OPEN + invoke(X + "and then" + X) + CLOSE)
    fields: Any = {"max_tokens": 900, "messages": ASK, "tools": [{"name": "f", "input_schema": SCHEMA}]}
    for stop in ("then", "\n\n"):
        whole = server.request("POST", "/v1/messages", json={**fields, "stop_sequences": [stop]}).json()
        assert (whole["stop_reason"], whole["stop_sequence"]) == ("max_tokens", None)
    assert chat(server, stop=["then"])[1]["finish"] == "length"


@broken
def test_responses(serve: Converse, text: str, begun: bool) -> None:
    server = serve("Why</think>Text" + text)
    fields: Any = {"input": "Q", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}
    whole = server.request("POST", "/v1/responses", json=fields).json()
    seen = events(server, "/v1/responses", **fields)
    assert whole["status"] == ("incomplete" if begun else "completed")
    assert seen[-1]["type"] == f"response.{whole['status']}"
    done = [event["item"] for event in seen if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in done] == [item["type"] for item in whole["output"]]
    assert all(json.loads(item["arguments"]) == {"x": "a"} for item in done if item["type"] == "function_call")
    added = [event["item"]["type"] for event in seen if event["type"] == "response.output_item.added"]
    assert len(added) == len(done) or seen[-1]["type"] == "response.incomplete"

    async def use(client: Any) -> list[str]:
        async with client.responses.stream(model=MODEL, **fields) as stream:
            return [event.type async for event in stream]

    assert server.sdk(use)[-1] == seen[-1]["type"]


@pytest.mark.parametrize("cut", range(8, 60, 3))
def test_a_limit_inside_a_call(serve: Converse, tokenizer: Tokenizer, cut: int) -> None:
    """Wherever the limit falls: never a call that is not whole, and whole and streamed agree."""
    text = "Text" + OPEN + invoke(X + f'<{D}parameter name="n" string="false">3</{D}parameter>\n') + CLOSE
    tokens = len(tokenizer.encode_text(text, trusted=True))
    whole, streamed = chat(serve(text), thinking={"type": "disabled"}, max_tokens=cut)
    closed = cut >= tokens
    assert whole["finish"] == streamed["finish"] == ("tool_calls" if closed else "length")
    assert whole["content"] == streamed["content"] == "Text"
    for call in whole["calls"]:
        assert json.loads(call["arguments"]) == {"x": "a", "n": 3}


VALUES = ["True", "three", "007", "", "[1,]", "{'a': None}", "NaN", "3", '"\\ud800"', "9" * 5000, "[" * 5000]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_arguments_are_json_everywhere(serve: Converse, value: str) -> None:
    def refuse(name: str) -> None:
        raise ValueError(name)

    server = serve(
        "</think>" + OPEN + invoke(f'<{D}parameter name="n" string="false">{value}</{D}parameter>\n') + CLOSE,
        context_length=65536,
    )
    whole, streamed = chat(server)
    assert whole == streamed
    (call,) = whole["calls"]
    wanted = json.loads(call["arguments"], parse_constant=refuse, parse_int=str)
    assert set(wanted) == {"n"}
    fields: Any = {"max_tokens": 9000, "messages": ASK, "tools": [{"name": "f", "input_schema": SCHEMA}]}
    body = server.request("POST", "/v1/messages", json=fields).text
    (block,) = json.loads(body, parse_int=str)["content"]
    assert block["input"] == wanted
    parts = [event["delta"] for event in events(server, "/v1/messages", **fields) if "delta" in event]
    assert json.loads("".join(part.get("partial_json", "") for part in parts), parse_int=str) == wanted
    fields = {"input": "Q", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}
    (item,) = server.request("POST", "/v1/responses", json=fields).json()["output"]
    assert json.loads(item["arguments"], parse_int=str) == wanted


PATCH = '*** Begin Patch\n+a "quoted" \\n line\u2028 😀\n' * 5 + "*** End Patch"
CUSTOM: Any = {"input": "Q", "tools": [{"type": "custom", "name": "apply_patch"}]}


@pytest.mark.parametrize(
    ("inner", "deltas"),
    [
        (f'<{D}parameter name="input" string="true">{PATCH}</{D}parameter>\n', 20),
        (json.dumps({"input": PATCH}, separators=(",", ":")) + "\n", 1),
    ],
)
def test_the_input_of_a_custom_tool_arrives_as_it_is_written(serve: Converse, inner: str, deltas: int) -> None:
    server = serve("</think>" + OPEN + invoke(inner, "apply_patch") + CLOSE)
    seen = events(server, "/v1/responses", **CUSTOM)
    pieces = [event["delta"] for event in seen if event["type"] == "response.custom_tool_call_input.delta"]
    assert len(pieces) >= deltas
    done = [event["input"] for event in seen if event["type"] == "response.custom_tool_call_input.done"]
    assert ["".join(pieces)] == done == [PATCH]
    (item,) = server.request("POST", "/v1/responses", json=CUSTOM).json()["output"]
    assert item["input"] == PATCH


def test_other_arguments_of_a_custom_tool(serve: Converse) -> None:
    server = serve("</think>" + OPEN + invoke(X, "apply_patch") + CLOSE)
    (item,) = server.request("POST", "/v1/responses", json=CUSTOM).json()["output"]
    assert item["input"] == '{"x": "a"}'


def test_logprobs_of_quoted_markup(serve: Converse, tokenizer: Tokenizer) -> None:
    """The text of the records is the text of the answer, also where it quotes control tokens."""
    text = "Put <think> around, then </think> and <｜DSML｜invoke>."
    server = serve([*tokenizer.encode_text(text), tokenizer.token_id("<｜title｜>"), tokenizer.eos_id])
    choice = server.answer(logprobs=True, thinking={"type": "disabled"})["choices"][0]
    assert choice["message"]["content"] == text
    assert b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"]).decode() == text


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whole_and_streamed_agree(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Whatever tokens a model writes, in three interfaces."""
    pieces = [
        OPEN,
        invoke(X),
        invoke(X + X),
        f'<{D}invoke name="f">\n',
        X,
        CLOSE,
        "</think>",
        "text",
        "\n\n<",
        "{",
        '"',
        "｜",
    ]
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(pieces), st.booleans()), max_size=8))
    tokens = [token for text, trusted in chosen for token in tokenizer.encode_text(text, trusted=trusted)]
    server = Server(tokenizer, StubGenerator([*tokens, tokenizer.eos_id]))
    limit = data.draw(st.integers(1, len(tokens) + 1))
    whole, streamed = chat(server, max_tokens=limit)
    assert (whole["content"], whole["finish"]) == (streamed["content"], streamed["finish"])
    assert streamed["calls"][: len(whole["calls"])] == whole["calls"]
    if whole["finish"] != "length":
        assert streamed["calls"] == whole["calls"]
    ask: Any = {"model": MODEL, "max_tokens": limit, "messages": ASK, "tools": [{"name": "f", "input_schema": SCHEMA}]}
    message = server.request("POST", "/v1/messages", json=ask).json()
    seen = events(server, "/v1/messages", **ask)
    text = "".join(event["delta"].get("text", "") for event in seen if event["type"] == "content_block_delta")
    assert text == "".join(block["text"] for block in message["content"] if block["type"] == "text") == whole["content"]
    assert sum(event["type"] == "content_block_start" for event in seen) == sum(
        event["type"] == "content_block_stop" for event in seen
    )
    ask = {"input": "Q", "max_output_tokens": limit, "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}
    response = server.request("POST", "/v1/responses", json=ask).json()
    seen = events(server, "/v1/responses", **ask)
    last = seen[-1]["response"]
    assert (seen[-1]["type"], last["status"]) == (f"response.{response['status']}", response["status"])
    assert [_said(item) for item in last["output"]] == [_said(item) for item in response["output"]]


def _said(item: dict[str, Any]) -> tuple[Any, ...]:
    return item["type"], item.get("arguments"), [part["text"] for part in item.get("content") or ()]


def test_deferred_tools_may_be_called(serve: Converse) -> None:
    server = serve("</think>" + OPEN + invoke(X, "late") + CLOSE)
    tools = [{"name": "f", "input_schema": SCHEMA}, {"name": "late", "input_schema": SCHEMA, "defer_loading": True}]
    body = {"max_tokens": 900, "messages": ASK, "tools": tools}
    assert server.request("POST", "/v1/messages", json=body).json()["stop_reason"] == "tool_use"


def test_events_hold_no_line_separators(serve: Converse) -> None:
    """Some readers of events split lines at them."""
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    server = serve(f"{text}</think>{text}" + OPEN + invoke(X.replace(">a<", f">{text}<")) + CLOSE)
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    whole, streamed = chat(server)
    assert whole == streamed
    assert json.loads(whole["calls"][0]["arguments"]) == {"x": text}
    for path, fields in (
        ("/v1/chat/completions", {"messages": ASK, "tools": tools}),
        ("/v1/messages", {"messages": ASK, "max_tokens": 99, "tools": [{"name": "f", "input_schema": SCHEMA}]}),
        ("/v1/responses", {"input": "Q", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}),
    ):
        body = server.request("POST", path, json={"stream": True, **fields}).text
        assert not set(body.splitlines()) - set(body.split("\n"))
