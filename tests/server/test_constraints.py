"""Forced calls, JSON answers, continued answers: what reaches the engine allows the right texts and only those."""

from typing import Any

import pytest

from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import Grammars
from dsv4.generation import ConstraintFactory
from tests.server.conftest import Converse, Server

USER = {"role": "user", "content": "Hi"}
OFF: dict[str, Any] = {"thinking": {"type": "disabled"}}
WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": function} for function in (WEATHER, CLOCK)]
CITY = '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
DAYS = '<｜DSML｜parameter name="days" string="false">{}</｜DSML｜parameter>\n'
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def call(name: str, parameters: str) -> str:
    return f'<｜DSML｜invoke name="{name}">\n{parameters or chr(10)}</｜DSML｜invoke>\n'


OPENING = "\n\n<｜DSML｜tool_calls>\n"


def block(*calls: str) -> str:
    return OPENING + "".join(calls) + "</｜DSML｜tool_calls>"


PARIS = block(call("weather", CITY))


def permits(factory: ConstraintFactory | None, tokenizer: Tokenizer, text: str) -> bool:
    """Whether every token of `text` and then the end token may come."""
    assert factory is not None
    state = factory.start()
    for token in [*tokenizer.encode_text(text, trusted=True), tokenizer.eos_id]:
        mask = state.allowed()
        if mask is not None and not mask[token // 8] >> token % 8 & 1:
            return False
        state.accept(token)
    return True


def asked(server: Server, **fields: Any) -> ConstraintFactory | None:
    server.answer(**fields)
    return server.generator.calls[-1].params.constraint


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize(
    ("choice", "text", "right"),
    [
        ("required", PARIS, True),
        ("required", block(call("clock", "")), True),
        ("required", block(call("weather", CITY), call("clock", "")), True),
        ("required", "No.", False),
        ("required", block(call("other", CITY)), False),
        ({"type": "function", "function": {"name": "clock"}}, block(call("clock", "")), True),
        ({"type": "function", "function": {"name": "clock"}}, PARIS, False),
    ],
)
def test_forced_calls(
    serve: Converse, tokenizer: Tokenizer, thinking: bool, choice: Any, text: str, right: bool
) -> None:
    server = serve(f"why</think>{PARIS}" if thinking else PARIS)
    factory = asked(server, tools=TOOLS, tool_choice=choice, **({} if thinking else OFF))
    assert permits(factory, tokenizer, f"any reason</think>{text}" if thinking else text.removeprefix(OPENING)) is right


@pytest.mark.parametrize("left_out", [{}, {"parameters": None}, {"parameters": {}}])
@pytest.mark.parametrize("fields", [{"strict": True}, {}])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_tool_whose_parameters_are_left_out_has_none(
    serve: Converse, tokenizer: Tokenizer, left_out: Any, fields: dict[str, Any], choice: str
) -> None:
    """OpenAI: omitting `parameters` defines a function with an empty parameter list."""
    tools = [{"type": "function", "function": {"name": "clock", **left_out, **fields}}]
    factory = asked(serve("x"), tools=tools, tool_choice=choice, **OFF)
    for text, right in ((block(call("clock", "")), True), (block(call("clock", CITY)), False)):
        assert permits(factory, tokenizer, text if choice == "auto" else text.removeprefix(OPENING)) is right


def test_the_prompt_opens_a_forced_call(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(PARIS.removeprefix(OPENING))
    choice = server.answer(tools=TOOLS, tool_choice="required", **OFF)["choices"][0]
    assert tokenizer.decode(server.generator.calls[-1].prompt).endswith(f"</think>{OPENING}")
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    # put back into the next prompt as it was: opening and calls
    result = {"role": "tool", "tool_call_id": call["id"], "content": "4 C"}
    server.answer(messages=[USER, choice["message"], result], tools=TOOLS, **OFF)
    assert f"</think>{PARIS}<｜end▁of▁sentence｜>" in tokenizer.decode(server.generator.calls[-1].prompt)


def test_calls_that_are_not_wanted_cannot_be_opened(serve: Converse, tokenizer: Tokenizer) -> None:
    factory = asked(serve("x"), tools=TOOLS, tool_choice="none")
    assert permits(factory, tokenizer, "any reason</think>Text.")
    assert not permits(factory, tokenizer, f"any reason</think>{PARIS}")


def test_reasoning_before_a_forced_answer_is_not_cut_short(serve: Converse, tokenizer: Tokenizer) -> None:
    for fields in ({"tools": TOOLS, "tool_choice": "required"}, {"response_format": {"type": "json_object"}}):
        factory = asked(serve("x"), **fields)
        assert not permits(factory, tokenizer, "any reason")  # and then the end token
        assert not permits(factory, tokenizer, f"any reason{PARIS}")
        # the parser of answers ends a message at a role token too
        for role in (tokenizer.dialect.user, tokenizer.dialect.assistant, tokenizer.dialect.latest_reminder):
            assert not permits(factory, tokenizer, f"any {role}reason</think>{PARIS if 'tools' in fields else '{}'}")
        assert permits(factory, tokenizer, f"any reason</think>{PARIS if 'tools' in fields else '{}'}")


def test_json_cannot_drown_in_white_space(serve: Converse, tokenizer: Tokenizer) -> None:
    for fields in ({}, {"tools": TOOLS}):
        factory = asked(serve("x"), response_format={"type": "json_object"}, **fields, **OFF)
        assert permits(factory, tokenizer, "{\n" + " " * 20 + '"a": 1}')
        assert not permits(factory, tokenizer, "{\n" + " " * 40 + '"a": 1}')


def test_forced_call_is_answered_as_one(serve: Converse) -> None:
    choice = serve(f"why</think>{PARIS}").answer(tools=TOOLS, tool_choice="required")["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'


@pytest.mark.parametrize(
    ("fields", "text", "right"),
    [
        ({}, "Text.", True),
        ({}, block(call("weather", CITY + DAYS.format(3))), True),
        ({}, block(call("weather", DAYS.format(3))), False),
        ({}, block(call("weather", CITY + DAYS.format('"x"'))), False),
        ({"parallel_tool_calls": False}, block(call("clock", ""), call("clock", "")), False),
        ({"response_format": {"type": "json_object"}}, block(call("weather", CITY)), True),
        ({"response_format": {"type": "json_object"}}, block(call("weather", DAYS.format(3))), False),
    ],
)
def test_strict_tools(serve: Converse, tokenizer: Tokenizer, fields: dict[str, Any], text: str, right: bool) -> None:
    tools = [{"type": "function", "function": {**function, "strict": True}} for function in (WEATHER, CLOCK)]
    assert permits(asked(serve("x"), tools=tools, **fields, **OFF), tokenizer, text) is right


def test_free_answers_have_no_constraint(serve: Converse) -> None:
    assert asked(serve("x", settings={"free_calls": True}), tools=TOOLS, tool_choice="auto") is None
    assert asked(serve("x")) is None
    assert asked(serve("x"), response_format={"type": "text"}) is None


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize(
    ("format_", "text", "right"),
    [
        ({"type": "json_object"}, '{"a": [1]}', True),
        ({"type": "json_object"}, "[1]", False),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, '{"n": 4}', True),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, '{"m": 4}', False),
    ],
)
def test_json_answers(
    serve: Converse, tokenizer: Tokenizer, thinking: bool, format_: Any, text: str, right: bool
) -> None:
    factory = asked(serve("x"), response_format=format_, **({} if thinking else OFF))
    assert permits(factory, tokenizer, f"why</think>{text}" if thinking else text) is right


@pytest.mark.parametrize(("text", "right"), [('{"n": 4}', True), (PARIS, True), ("Text.", False)])
def test_json_answer_or_calls(serve: Converse, tokenizer: Tokenizer, text: str, right: bool) -> None:
    format_ = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    factory = asked(serve("x"), response_format=format_, tools=TOOLS, **OFF)
    assert permits(factory, tokenizer, text) is right


def test_the_prompt_shows_the_schema(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve("x")
    server.answer(response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}})
    assert "## Response Format:" in tokenizer.decode(server.generator.calls[0].prompt)


def test_unenforceable_schemas(serve: Converse, tokenizer: Tokenizer) -> None:
    odd = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "odd"}}}}
    tools = [{"type": "function", "function": odd}]
    factory = asked(serve("x"), tools=tools, tool_choice="required", **OFF)
    assert permits(factory, tokenizer, block(call("f", CITY)).removeprefix(OPENING))
    strict = [{"type": "function", "function": {**odd, "strict": True}}]
    error = serve("x").post(tools=strict).json()["error"]
    assert error["param"] == "tools"
    assert "odd" in error["message"]


@pytest.mark.parametrize("path", ["/beta/chat/completions", "/v1/chat/completions"])
def test_prefix_completion(serve: Converse, tokenizer: Tokenizer, path: str) -> None:
    server = serve("two```")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "one ", "prefix": True}]
    for fields in ({}, OFF):
        response = server.request("POST", path, json={"messages": messages, "stop": "```", **fields})
        assert response.json()["choices"][0]["message"]["content"] == "two"
        assert tokenizer.decode(server.generator.calls[-1].prompt).endswith("</think>one ")


def test_prefix_of_the_reasoning(serve: Converse, tokenizer: Tokenizer) -> None:
    server = serve(" more</think>done")
    last = {"role": "assistant", "content": "", "reasoning_content": "Let me", "prefix": True}
    message = server.answer(messages=[{"role": "user", "content": "Hi"}, last])["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (" more", "done")
    assert tokenizer.decode(server.generator.calls[0].prompt).endswith("<think>Let me")


PREFIX = '{"n": '


@pytest.mark.parametrize("interface", ["chat", "messages"])
@pytest.mark.parametrize(
    ("prefix", "text", "right"),
    [(PREFIX, "4}", True), (PREFIX, '{"n": 4}', False), (" \n{", '"n": 4}', True), ("Sure: ", "", None)],
)
def test_json_goes_on_from_a_prefix(
    serve: Converse, tokenizer: Tokenizer, interface: str, prefix: str, text: str, right: bool | None
) -> None:
    server = serve("x")
    messages: Any = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": prefix}]
    if interface == "chat":
        messages[1]["prefix"] = True
        format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        response = server.post(messages=messages, response_format=format_)
    else:
        fields = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}, "max_tokens": 9}
        response = server.request("POST", "/v1/messages", json={"messages": messages, **fields})
    if right is None:
        assert response.status_code == 400
        assert "Sure: " in response.json()["error"]["message"]
        return
    assert permits(server.generator.calls[-1].params.constraint, tokenizer, text) is right


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


BOMB = {"type": "string", "pattern": "^(a?){500}a{500}$"}


@pytest.mark.parametrize("schema", [deep(80), {"$ref": "#"}, BOMB, {"enum": [10**400]}], ids=range(4))
def test_hostile_schemas_are_400_everywhere(serve: Converse, schema: Any) -> None:
    server = serve("x")
    format_ = {"type": "json_schema", "name": "x", "schema": schema}
    parameters = schema if "$ref" in schema else {"properties": {"x": schema}}
    tool = {"name": "f", "strict": True, "parameters": parameters}
    ask = {"messages": [{"role": "user", "content": "Q"}], "max_tokens": 9}
    for path, fields in (
        ("chat/completions", {**ask, "response_format": {"type": "json_schema", "json_schema": format_}}),
        ("chat/completions", {**ask, "tools": [{"type": "function", "function": tool}]}),
        ("messages", {**ask, "output_config": {"format": format_}}),
        ("responses", {"input": "Q", "text": {"format": format_}}),
    ):
        response = server.request("POST", f"/v1/{path}", json=fields)
        assert response.status_code == 400, response.text
        assert ("tools" if "tools" in fields else "response_format") in response.json()["error"]["message"]


def test_one_strict_tool_beside_one_that_cannot_be_enforced(serve: Converse, tokenizer: Tokenizer) -> None:
    odd = {"name": "odd", "parameters": {"type": "object", "properties": {"a": {"type": "string", "not": {}}}}}
    tools = [{"type": "function", "function": {**WEATHER, "strict": True}}, {"type": "function", "function": odd}]
    for choice in ("auto", "required"):
        factory = asked(serve("x"), tools=tools, tool_choice=choice, **OFF)
        for text, right in ((PARIS, True), (call("odd", CITY), True), (call("weather", DAYS.format(3)), False)):
            whole = text if text is PARIS else block(text)
            begun = whole.removeprefix("\n\n<｜DSML｜tool_calls>\n") if choice == "required" else whole
            assert permits(factory, tokenizer, begun) is right


def test_a_schema_that_is_refused_again_costs_others_nothing(serve: Converse, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    real = Grammars._compiled
    monkeypatch.setattr(Grammars, "_compiled", lambda self, source: compiled.append(source) or real(self, source))
    odd = {"name": "odd", "parameters": {"properties": {"a": {"type": "array", "uniqueItems": True}}}}
    many = [{**CLOCK, "name": f"clock_{i}"} for i in range(70)]
    tools = [{"type": "function", "function": function} for function in (*many, odd)]
    strict = [{"type": "function", "function": {**odd, "strict": True}}]
    bomb = {"type": "json_schema", "json_schema": {"schema": BOMB}}
    server = serve("x", context_length=100_000)
    wanted = ({"tools": tools, "tool_choice": "required"}, {"tools": strict}, {"response_format": bomb})
    first = [server.post(**fields) for fields in wanted]
    assert [answer.status_code for answer in first] == [200, 400, 400]
    count = len(compiled)
    assert count
    again = [server.post(**fields) for fields in wanted]
    assert [answer.status_code for answer in again] == [200, 400, 400]
    assert [answer.json() for answer in again[1:]] == [answer.json() for answer in first[1:]]
    assert len(compiled) == count
