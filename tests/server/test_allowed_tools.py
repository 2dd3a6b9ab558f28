"""`tool_choice` of type allowed_tools: only the named functions can be called, by OpenAI's SDK in both interfaces."""

import json
from typing import Any

import openai
import pytest

from dsv4.encoding import Tokenizer
from tests.server.conftest import MODEL, Converse, Server
from tests.server.test_constraints import CITY, CLOCK, OFF, OPENING, SCHEMA, WEATHER, asked, block, call, permits
from tests.server.test_guarded_calls import wilful

ZONE = {"name": "zone", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
FUNCTIONS = (WEATHER, CLOCK, ZONE)
TOOLS: list[Any] = [{"type": "function", "function": function} for function in FUNCTIONS]
PARIS, TIME, PLACE = call("weather", CITY), call("clock", ""), call("zone", CITY)
QUESTION = {"role": "user", "content": "Q"}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


async def chat(client: openai.AsyncOpenAI, mode: str, *names: str, stream: bool = False) -> tuple[str, list[Any], str]:
    """The text, the calls and the finish reason."""
    ask: Any = {
        "model": MODEL, "messages": [QUESTION], "tools": TOOLS, "tool_choice": allowed(mode, *names), "max_tokens": 400,
        "extra_body": OFF,
    }  # fmt: skip
    if stream:
        async with client.chat.completions.stream(**ask) as events:
            choice = (await events.get_final_completion()).choices[0]
    else:
        choice = (await client.chat.completions.create(**ask)).choices[0]
    calls = [(made.function.name, json.loads(made.function.arguments)) for made in choice.message.tool_calls or ()]
    return choice.message.content or "", calls, choice.finish_reason


async def responses(client: openai.AsyncOpenAI, mode: str, *names: str, stream: bool = False) -> tuple[str, list[Any]]:
    """The text and the calls."""
    named = [{"type": "function", "name": name} for name in names]
    ask: Any = {
        "model": MODEL, "input": "Q", "tools": [{"type": "function", "strict": False, **f} for f in FUNCTIONS],
        "tool_choice": {"type": "allowed_tools", "mode": mode, "tools": named},
        "max_output_tokens": 400, "reasoning": {"effort": "none"},
    }  # fmt: skip
    if stream:
        async with client.responses.stream(**ask) as events:
            answer = await events.get_final_response()
    else:
        answer = await client.responses.create(**ask)
    assert answer.tool_choice.type == "allowed_tools"
    calls = [(item.name, json.loads(item.arguments)) for item in answer.output if item.type == "function_call"]
    return answer.output_text, calls


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("mode", "names", "wanted", "made"),
    [
        ("auto", ("clock", "zone"), "Words.", []),
        ("auto", ("clock", "zone"), f"Words.{block(TIME, PLACE)}", ["clock", "zone"]),
        ("auto", ("clock", "zone"), f"Words.{block(PARIS)}", None),
        ("auto", ("clock", "zone"), f"Words.{block(TIME, PARIS, PLACE)}", None),
        ("required", ("clock", "zone"), block(PLACE, TIME), ["zone", "clock"]),
        ("required", ("clock", "zone"), "Words.", None),
        ("required", ("clock", "zone"), block(PARIS), None),
        ("required", ("zone",), block(PLACE, PLACE), ["zone", "zone"]),
    ],
)
def test_only_the_named_tools_are_called(
    tokenizer: Tokenizer, mode: str, names: tuple[str, ...], wanted: str, made: list[str] | None, stream: bool
) -> None:
    """made: None = what the model wants is forbidden, and it calls what is allowed."""
    text, calls, finish = wilful(tokenizer, wanted).sdk(lambda client: chat(client, mode, *names, stream=stream))
    assert finish == ("tool_calls" if calls else "stop")
    other, also = wilful(tokenizer, wanted).sdk(lambda client: responses(client, mode, *names, stream=stream))
    assert text.rstrip() == other.rstrip() == ("Words." if mode == "auto" else "")
    for found in (calls, also):
        called = [name for name, _ in found]
        if made is not None:
            assert called == made
        else:
            assert called
            assert {*called} <= {*names}
        assert all(arguments == {} for name, arguments in found if name == "clock")


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("free_calls", [True, False])
@pytest.mark.parametrize(
    ("mode", "text", "right"),
    [
        ("auto", "Words.", True),
        ("auto", block(TIME), True),
        ("auto", block(TIME, PARIS), False),
        ("auto", block(PARIS), False),
        ("required", "Words.", False),
        ("required", block(PLACE, TIME), True),
        ("required", block(PARIS), False),
    ],
)
def test_what_the_grammar_allows(
    serve: Converse, tokenizer: Tokenizer, mode: str, text: str, right: bool, thinking: bool, free_calls: bool
) -> None:
    server = serve("x", settings={"free_calls": free_calls})
    factory = asked(server, tools=TOOLS, tool_choice=allowed(mode, "clock", "zone"), **({} if thinking else OFF))
    begun = text.removeprefix(OPENING) if mode == "required" and not thinking else text
    assert permits(factory, tokenizer, f"why</think>{begun}" if thinking else begun) is right


@pytest.mark.parametrize(("text", "right"), [('{"n": 4}', True), (block(TIME), True), (block(PARIS), False)])
def test_beside_a_schema(serve: Converse, tokenizer: Tokenizer, text: str, right: bool) -> None:
    format_ = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    factory = asked(serve("x"), response_format=format_, tools=TOOLS, tool_choice=allowed("auto", "clock"), **OFF)
    assert permits(factory, tokenizer, text) is right


def test_the_prompt_shows_all_tools_whatever_is_allowed(serve: Converse) -> None:
    server = serve("x")
    for choice in ("auto", allowed("auto", "clock"), allowed("required", "clock", "zone")):
        server.answer(tools=TOOLS, tool_choice=choice)
    first, *others = [call.prompt for call in server.generator.calls]
    assert all(other == first for other in others)


def test_a_tool_that_is_not_allowed_is_no_call_even_without_a_grammar(serve: Converse) -> None:
    """The stub follows no grammar, like an engine that ignores it."""
    choice = serve(f"Words.{block(PARIS)}").answer(tools=TOOLS, tool_choice=allowed("auto", "clock"), **OFF)["choices"][
        0
    ]
    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]
    assert "weather" in choice["message"]["content"]


def test_one_call_where_parallel_calls_are_off(serve: Converse, tokenizer: Tokenizer) -> None:
    for mode, strip in (("auto", ""), ("required", OPENING)):
        choice = allowed(mode, "clock", "zone")
        factory = asked(serve("x"), tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, **OFF)
        assert permits(factory, tokenizer, block(TIME).removeprefix(strip))
        assert not permits(factory, tokenizer, block(TIME, PLACE).removeprefix(strip))


CHAT, FLAT = "tool_choice.allowed_tools", "tool_choice"


@pytest.mark.parametrize(
    ("choice", "param", "message"),
    [
        (allowed("auto", "clock", "clocks"), f"{CHAT}.tools[1].function.name", "no function is named 'clocks'"),
        (allowed("some", "clock"), f"{CHAT}.mode", "expected 'auto' or 'required', got 'some'"),
        (allowed("auto"), f"{CHAT}.tools", "at least one tool"),
        ({"type": "allowed_tools", "allowed_tools": ["clock"]}, CHAT, "mode and tools"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": ["clock"]}}, f"{CHAT}.tools[0]", "name"),
        ({"type": "allowed_tools", "mode": "auto", "tools": {"name": "clock"}}, f"{FLAT}.tools", "list"),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "clocks"}]},
            f"{FLAT}.tools[0].name",
            "no function is named 'clocks'",
        ),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "mcp"}]}, FLAT, "no function is allowed"),
    ],
)
def test_mistakes_name_the_field(serve: Converse, choice: Any, param: str, message: str) -> None:
    server = serve("x")
    flat = [{"type": "function", **function} for function in FUNCTIONS]
    for answer in (
        server.post(tools=TOOLS, tool_choice=choice),
        server.request("POST", "/v1/responses", json={"input": "Q", "tools": flat, "tool_choice": choice}),
    ):
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == param
        assert message in error["message"]


def test_a_schema_at_fault_is_named_by_its_place_in_the_request(serve: Converse) -> None:
    """Not by that among the tools that may be called."""
    odd = {"name": "odd", "strict": True, "parameters": {"properties": {"a": {"type": "array", "uniqueItems": True}}}}
    server, by_name = serve("x"), {"type": "function", "function": {"name": "odd"}}
    for choice in ("auto", "required", by_name, allowed("auto", "odd"), allowed("required", "zone", "odd")):
        answer = server.post(tools=[*TOOLS, {"type": "function", "function": odd}], tool_choice=choice)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "tools"
        assert error["message"].startswith("tools[3].function.parameters.properties.a: ")


def test_sdk_errors_name_the_field(serve: Converse) -> None:
    with pytest.raises(openai.BadRequestError, match=r"tools\[1\].function.name: no function is named 'moon'"):
        serve("x").sdk(lambda client: chat(client, "required", "clock", "moon"))
    with pytest.raises(openai.BadRequestError, match=r"tool_choice.tools\[0\].name: no function is named 'moon'"):
        serve("x").sdk(lambda client: responses(client, "auto", "moon"))


def test_tools_of_other_servers_are_left_out_of_the_choice(serve: Converse, tokenizer: Tokenizer) -> None:
    server: Server = serve("x")
    tools = [*({"type": "function", **function} for function in FUNCTIONS), {"type": "web_search"}]
    for named, right in (([{"type": "function", "name": "clock"}], True), ([], False)):
        choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}, *named]}
        body = {"input": "Q", "tools": tools, "tool_choice": choice, "reasoning": {"effort": "none"}}
        assert server.request("POST", "/v1/responses", json=body).status_code == 200
        factory = server.generator.calls[-1].params.constraint
        assert permits(factory, tokenizer, "Words.")
        assert permits(factory, tokenizer, block(TIME)) is right
        assert not permits(factory, tokenizer, block(PARIS))


def test_tools_in_a_namespace(serve: Converse, tokenizer: Tokenizer) -> None:
    server: Server = serve("x")
    inner = [{"type": "function", "name": name, "parameters": {}} for name in ("read", "write")]
    tools = [{"type": "namespace", "name": "files", "description": "", "tools": inner}]
    named = {"type": "function", "name": "read", "namespace": "files"}
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [named]}
    body = {"input": "Q", "tools": tools, "tool_choice": choice, "reasoning": {"effort": "none"}}
    assert server.request("POST", "/v1/responses", json=body).status_code == 200
    factory = server.generator.calls[-1].params.constraint
    separator = tokenizer.dialect.namespace_separator
    assert permits(factory, tokenizer, block(call(f"files{separator}read", "")))
    assert not permits(factory, tokenizer, block(call(f"files{separator}write", "")))
