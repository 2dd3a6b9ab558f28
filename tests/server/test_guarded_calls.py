"""Calls that a model makes of its own choice: one that wants to write malformed ones, in three interfaces."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import GrammarError, Grammars
from dsv4.generation import FinishReason, RequestOptions, SamplingParams, TokenEvent
from dsv4.server.dialects.call_guard import CallGuard, unguarded
from dsv4.testing.stub import StubGenerator
from tests.server.conftest import Converse, Server

D = "｜DSML｜"
OPEN, CLOSE = f"\n\n<{D}tool_calls>\n", f"</{D}tool_calls>"
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"type": "string", "enum": ["metric", "imperial"]},
    },
    "required": ["days", "city"],
}
FUNCTIONS = [
    {"name": "weather", "parameters": SCHEMA},
    {"name": "now", "parameters": {"type": "object", "properties": {}}},
]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
OFF: dict[str, Any] = {"thinking": {"type": "disabled"}}


def parameter(name: str, value: str, text: bool = True) -> str:
    return f'<{D}parameter name="{name}" string="{str(text).lower()}">{value}</{D}parameter>\n'


def invoke(inner: str, name: str = "weather") -> str:
    return f'<{D}invoke name="{name}">\n{inner}</{D}invoke>\n'


CITY, DAYS, UNIT = parameter("city", "Paris"), parameter("days", "3", False), parameter("unit", "metric")
WANTED = {
    "unknown name": OPEN + invoke(CITY + DAYS, "forecast") + CLOSE,
    "unknown parameter": OPEN + invoke(CITY + DAYS + parameter("country", "x")) + CLOSE,
    "missing": OPEN + invoke(CITY) + CLOSE,
    "no parameters": OPEN + invoke("\n") + CLOSE,
    "wrong type": OPEN + invoke(CITY + parameter("days", "three")) + CLOSE,
    "no such value": OPEN + invoke(UNIT.replace("metric", "kelvin") + CITY + DAYS) + CLOSE,
    "twice": OPEN + invoke(CITY + CITY + DAYS) + CLOSE,
    "text between": OPEN + invoke(CITY + "and " + DAYS) + CLOSE,
    "text before": OPEN + "I look. " + invoke(CITY + DAYS) + CLOSE,
    "JSON": OPEN + invoke('{"city": "Paris", "days": 3}\n') + CLOSE,
    "no block": "\n\n" + invoke(CITY + DAYS),
    "empty": OPEN + CLOSE,
    "ends in a value": OPEN + f'<{D}invoke name="weather">\n<{D}parameter name="city" string="true">Par',
    "ends behind a call": OPEN + invoke(CITY + DAYS),
    "text behind": OPEN + invoke(CITY + DAYS) + CLOSE + " So it is.",
}


class Wilful(StubGenerator):
    """A stub that writes its script as far as it may: where the next token is forbidden it takes the nearest later one
    of the script that is allowed, without one what ends a part, else the lowest."""

    def __init__(self, tokenizer: Tokenizer, text: str, **options: Any) -> None:
        super().__init__([*tokenizer.encode_text(text, trusted=True), tokenizer.eos_id], **options)
        [self._open], [self._slash] = tokenizer.encode_text("<"), tokenizer.encode_text("/")
        self._tokenizer = tokenizer
        self.masked = 0

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        wanted = [event.token async for event in super().stream(prompt, params) if event.token is not None]
        state = params.constraint.start() if params.constraint is not None else None
        token = self._open
        for written in range(1, params.max_tokens + 1):
            mask = state.allowed() if state is not None else None
            self.masked += mask is not None
            if mask is None:
                token = wanted.pop(0)
            else:
                allowed = [i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1]
                place = next((at for at, next_ in enumerate(wanted) if next_ in allowed), None)
                if place is None:
                    token = next((end for end in self._ending(token) if end in allowed), allowed[0])
                else:
                    token = wanted[place]
                    wanted = wanted[place + 1 :]
            if state is not None:
                state.accept(token)
            over = token in params.stop_ids
            yield TokenEvent(token, FinishReason.STOP if over else FinishReason.LENGTH if written == 500 else None)
            if over:
                return
            await asyncio.sleep(0)

    def _ending(self, last: int) -> tuple[int, ...]:
        """What ends a part, the whole answer first: a tag that closes rather than one that opens."""
        opened = self._tokenizer.token_bytes(last).endswith(b"<")
        return (self._tokenizer.eos_id, *([self._slash] if opened else []), self._tokenizer.token_id(D), self._open)


def wilful(tokenizer: Tokenizer, text: str, **settings: Any) -> Server:
    return Server(tokenizer, Wilful(tokenizer, text), **settings)


def calls_of(server: Server, interface: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls of a whole answer, which has no text but what was written before."""
    ask = {"messages": [{"role": "user", "content": "Q"}], "max_tokens": 500, **OFF}
    if interface == "chat":
        choice = server.answer(tools=TOOLS, **ask)["choices"][0]
        assert (choice["finish_reason"], choice["message"]["content"] or "") == ("tool_calls", "Yes.")
        made = [call["function"] for call in choice["message"]["tool_calls"]]
        return [(call["name"], json.loads(call["arguments"])) for call in made]
    if interface == "messages":
        tools = [{"name": f["name"], "input_schema": f["parameters"]} for f in FUNCTIONS]
        answer = server.request("POST", "/v1/messages", json={"tools": tools, **ask}).json()
        assert answer["stop_reason"] == "tool_use"
        assert [block["text"] for block in answer["content"] if block["type"] == "text"] == ["Yes."]
        return [(block["name"], block["input"]) for block in answer["content"] if block["type"] == "tool_use"]
    tools = [{"type": "function", **function} for function in FUNCTIONS]
    body = {"input": "Q", "tools": tools, "max_output_tokens": 500, "reasoning": {"effort": "none"}}
    answer = server.request("POST", "/v1/responses", json=body).json()
    assert answer["status"] == "completed"
    items = [item for item in answer["output"] if item["type"] == "function_call"]
    return [(item["name"], json.loads(item["arguments"])) for item in items]


def valid(name: str, arguments: dict[str, Any]) -> bool:
    if name == "now":
        return arguments == {}
    kinds = {"city": str, "days": int, "unit": str}
    typed = all(key in kinds and type(value) is kinds[key] for key, value in arguments.items())
    return (
        name == "weather" and typed and {"city", "days"} <= set(arguments)
        and arguments.get("unit", "metric") in ("metric", "imperial")
    )  # fmt: skip


@pytest.mark.parametrize("interface", ["chat", "messages", "responses"])
@pytest.mark.parametrize("text", WANTED.values(), ids=WANTED)
def test_calls_come_out_valid(tokenizer: Tokenizer, interface: str, text: str) -> None:
    calls = calls_of(wilful(tokenizer, "Yes." + text), interface)
    assert calls
    assert all(valid(name, arguments) for name, arguments in calls), calls


def test_a_valid_block_is_written_as_the_model_wants_it(tokenizer: Tokenizer) -> None:
    """Parameters in another order than the schema's, then a second call."""
    text = OPEN + invoke(UNIT + CITY + DAYS) + invoke("\n", "now") + CLOSE
    calls = calls_of(wilful(tokenizer, "Yes." + text), "chat")
    assert calls == [("weather", {"unit": "metric", "city": "Paris", "days": 3}), ("now", {})]
    assert [*calls[0][1]] == ["unit", "city", "days"]


@pytest.mark.parametrize("text", ["Plain text.", f"A stray {D} mark.", "<tool_calls>", f"why</think>no {D}call"])
def test_other_answers_are_not_touched(tokenizer: Tokenizer, text: str) -> None:
    server = wilful(tokenizer, text)
    fields = {} if "think" in text else OFF
    answer = server.answer(tools=TOOLS, **fields)["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["message"]["content"] == text.split("</think>")[-1].replace(D, "")
    assert isinstance(server.generator, Wilful)
    assert server.generator.masked == 0


def test_a_call_inside_the_reasoning_ends_its_budget(tokenizer: Tokenizer) -> None:
    server = wilful(tokenizer, "why" + OPEN + invoke(CITY + DAYS) + CLOSE)
    choice = server.answer(tools=TOOLS, thinking_budget=20)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris", "days": 3}


def test_one_call_when_parallel_calls_are_off(tokenizer: Tokenizer) -> None:
    text = OPEN + invoke(CITY + DAYS) + invoke("\n", "now") + CLOSE
    choice = wilful(tokenizer, text).answer(tools=TOOLS, parallel_tool_calls=False, **OFF)["choices"][0]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]


def test_beside_a_schema_calls_have_their_form_too(tokenizer: Tokenizer) -> None:
    format_ = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "required": ["n"]}}}
    for text in (OPEN + invoke(CITY + DAYS) + CLOSE, WANTED["wrong type"], WANTED["twice"]):
        choice = wilful(tokenizer, text).answer(tools=TOOLS, response_format=format_, **OFF)["choices"][0]
        (call,) = choice["message"]["tool_calls"]
        assert valid(call["function"]["name"], json.loads(call["function"]["arguments"]))
        assert call["function"]["arguments"].startswith('{"city"')


def test_grammars_are_compiled_beside_the_answers_of_others(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []
    real = Grammars.calls_in_any_order

    def seen(*args: Any, **more: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return real(*args, **more)

    monkeypatch.setattr(Grammars, "calls_in_any_order", seen)
    for interface in ("chat", "messages", "responses"):
        calls_of(wilful(tokenizer, "Yes." + OPEN + invoke(CITY + DAYS) + CLOSE), interface)
    assert threads == [False] * 3


def test_custom_tools_of_responses_take_any_text(tokenizer: Tokenizer) -> None:
    patch = "*** Begin\n-a </b>\n+{\n"
    server = wilful(tokenizer, OPEN + invoke(parameter("input", patch), "patch") + CLOSE)
    tool = {"type": "custom", "name": "patch", "description": "Applies a patch."}
    body = {"input": "Q", "tools": [tool], "reasoning": {"effort": "none"}}
    output = server.request("POST", "/v1/responses", json=body).json()["output"]
    assert [item["input"] for item in output if item["type"] == "custom_tool_call"] == [patch]


def test_it_can_be_turned_off(tokenizer: Tokenizer) -> None:
    server = wilful(tokenizer, WANTED["unknown name"], free_calls=True)
    choice = server.answer(tools=TOOLS, **OFF)["choices"][0]
    assert server.generator.calls[-1].params.constraint is None
    assert "forecast" in choice["message"]["content"]


def test_a_schema_that_cannot_be_enforced_is_no_fault(tokenizer: Tokenizer) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"anyOf": [{"not": {}}]}}}]
    choice = wilful(tokenizer, WANTED["unknown name"]).answer(tools=tools, **OFF)["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"


def refused(*_: Any, **__: Any) -> Any:
    raise GrammarError("tools: nothing works")


def test_without_any_grammar_the_answer_is_free(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Grammars, "calls_in_any_order", refused)
    server = wilful(tokenizer, "Yes." + OPEN + invoke(CITY + DAYS) + CLOSE)
    assert calls_of(server, "chat") == [("weather", {"city": "Paris", "days": 3})]
    assert "nothing works" in capsys.readouterr().err


TWO_CALLS = OPEN + invoke(CITY + DAYS) + invoke("\n", "now") + CLOSE
SINGLE = {
    "chat": ("/v1/chat/completions", {"parallel_tool_calls": False}),
    "messages": ("/v1/messages", {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
    "responses": ("/v1/responses", {"parallel_tool_calls": False}),
}


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("interface", SINGLE)
def test_one_call_without_any_grammar(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, interface: str, free: bool
) -> None:
    """The second call ends the answer."""
    monkeypatch.setattr(Grammars, "calls_in_any_order", refused)
    server = wilful(tokenizer, "Yes." + TWO_CALLS, free_calls=free)
    path, fields = SINGLE[interface]
    ask = {"messages": [{"role": "user", "content": "Q"}], "max_tokens": 500, **OFF}
    tools: list[Any] = TOOLS
    if interface == "messages":
        tools = [{"name": f["name"], "input_schema": f["parameters"]} for f in FUNCTIONS]
    if interface == "responses":
        ask = {"input": "Q", "reasoning": {"effort": "none"}}
        tools = [{"type": "function", **function} for function in FUNCTIONS]
    body = {"tools": tools, **ask, **fields}
    whole = server.request("POST", path, json=body).json()
    streamed = server.request("POST", path, json={**body, "stream": True}).text
    assert server.generator.calls[-1].params.constraint is None
    ends = {"chat": '"finish_reason":"tool_calls"', "messages": '"stop_reason":"tool_use"', "responses": '"completed"'}
    for text in (json.dumps(whole, separators=(",", ":"), ensure_ascii=False), streamed.replace(": ", ":")):
        assert '"weather"' in text
        assert ends[interface] in text
        assert '"now"' not in text.split('"tools"')[0]


@pytest.mark.parametrize("second", [invoke("\n", "unknown"), f'<{D}invoke name="no'], ids=["unknown", "unfinished"])
def test_a_second_call_ends_the_answer_before_it_can_be_wrong(tokenizer: Tokenizer, second: str) -> None:
    server = wilful(tokenizer, "Yes." + OPEN + invoke(CITY + DAYS) + second + CLOSE, free_calls=True)
    for single, reason in ((True, "tool_calls"), (False, "length")):
        choice = server.answer(tools=TOOLS, parallel_tool_calls=not single, **OFF)["choices"][0]
        assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]
        assert (choice["finish_reason"], choice["message"]["content"] == "Yes.") == (reason, single)


FORMAT = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "required": ["n"]}}}
REFUSES = {
    "what is in the calls": lambda functions, any_order: any("parameters" in one for one in functions or ()),
    "every name": lambda functions, any_order: functions is not None,
}


@pytest.mark.parametrize("refuses", REFUSES.values(), ids=REFUSES)
@pytest.mark.parametrize("parallel", [False, True])
def test_beside_a_schema_calls_are_as_free_as_they_must_be(
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refuses: Any,
    parallel: bool,
) -> None:
    real = Grammars.json_schema_or_calls

    def picky(self: Any, schema: Any, functions: Any, *, any_order: bool = False, **more: Any) -> Any:
        if refuses(functions, any_order):
            raise GrammarError("tools: too large")
        return real(self, schema, functions, any_order=any_order, **more)

    monkeypatch.setattr(Grammars, "json_schema_or_calls", picky)
    fields = {"tools": TOOLS, "response_format": FORMAT, "parallel_tool_calls": parallel, **OFF}
    choice = wilful(tokenizer, TWO_CALLS).answer(**fields)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    names = [call["function"]["name"] for call in choice["message"]["tool_calls"]]
    assert names == (["weather", "now"] if parallel else ["weather"])
    assert "too large" in capsys.readouterr().err
    text = wilful(tokenizer, 'Text. {"n": 1}').answer(**fields)["choices"][0]["message"]["content"]
    assert json.loads(text) == {"n": 1}, "the client demands JSON"


def test_a_schema_that_cannot_be_enforced_is_the_clients_beside_tools(tokenizer: Tokenizer) -> None:
    format_ = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "not": {}}}}
    response = wilful(tokenizer, "x").post(tools=TOOLS, response_format=format_)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "response_format")


MANY = [
    {"name": f"f{n}", "parameters": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(50)}}}
    for n in range(100)
]  # of more parameters than can be enforced


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_more_parameters_than_can_be_enforced(tokenizer: Tokenizer, choice: str, strict: bool) -> None:
    """Those of a strict tool are, and of the others the names."""
    first = {**FUNCTIONS[0], "strict": strict}
    tools = [{"type": "function", "function": function} for function in (first, *MANY)]
    text = OPEN + invoke(CITY + DAYS) + invoke(parameter("q", "x"), "f7") + CLOSE
    server = Server(tokenizer, Wilful(tokenizer, text, context_length=200_000))
    made = server.answer(tools=tools, tool_choice=choice, **OFF)["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["name"] for call in made] == ["weather", "f7"]
    if strict:
        tools = [{**tool, "function": {**tool["function"], "strict": True}} for tool in tools]
        error = server.post(tools=tools, tool_choice=choice, **OFF).json()["error"]
        assert (error["param"], "at most 4,000 parameters" in error["message"]) == ("tools", True)


def test_a_grammar_that_gives_up_in_a_call_beside_a_schema(
    tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the JSON the answer ends, because the client demands it."""
    dsml = tokenizer.token_id(D)
    grammar = Grammars(tokenizer).json_schema_or_calls({"type": "object"}, FUNCTIONS, any_order=True)
    state = grammar.yielding(unguarded, behind=dsml).start()
    for token in tokenizer.encode_text(f"\n\n<{D}", trusted=True):
        state.accept(token)
    assert state.allowed() is not None
    state.accept(tokenizer.encode_text("x")[0])  # as if it was over its limits
    assert state.allowed() is None
    assert "calls_unguarded" in capsys.readouterr().err
    state = grammar.yielding(unguarded, behind=dsml).start()
    with pytest.raises(RuntimeError, match="grew too complex"):
        state.accept(tokenizer.encode_text("x")[0])


def test_a_grammar_that_gives_up_lets_the_answer_go_on(
    tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = CallGuard(Grammars(tokenizer).calls_in_any_order(FUNCTIONS), tokenizer)
    state = guard.start()
    for token in tokenizer.encode_text(f"<{D}", trusted=True):
        assert state.allowed() is None
        state.accept(token)
    assert state.allowed() is not None
    state.accept(tokenizer.encode_text("x")[0])  # as if it was over its limits
    assert state.allowed() is None
    for token in tokenizer.encode_text(f"<{D}", trusted=True):
        state.accept(token)
    assert state.allowed() is None
    assert "calls_unguarded" in capsys.readouterr().err


def test_the_guard_is_not_asked_of_other_engines(serve: Converse) -> None:
    """There it would cost a second request."""
    server = serve("x")
    server.answer(tools=TOOLS, thinking_budget=5)
    constraint = server.generator.calls[-1].params.constraint
    reasoning, rest = constraint.stages()  # type: ignore[union-attr]
    assert (reasoning.most, reasoning.banned) == (5, ())
    assert (rest.until, rest.grammar, rest.banned) == (None, None, ())
