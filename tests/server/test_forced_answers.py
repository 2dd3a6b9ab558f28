"""Answers that a client demands, from a model that says anything it may: a required call is a call, also beside a JSON
format, and an answer that is none follows the format."""

import json
from typing import Any

import pytest

from dsv4.encoding import Tokenizer
from tests.server.conftest import TRIP, Server
from tests.server.rambling import Rambling
from tests.server.test_guarded_calls import OPEN, invoke, parameter, wilful

FUNCTIONS = [{"name": name, "parameters": TRIP} for name in ("plan", "book")]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
FORMAT = {"type": "json_schema", "json_schema": {"name": "trip", "schema": TRIP}}
THINKING: dict[str, dict[str, Any]] = {
    "off": {"thinking": {"type": "disabled"}},
    "on": {},
    "budget": {"thinking": {"type": "enabled", "budget_tokens": 30}},
}
# the schemas of other tools are not enforced in full where the model need not call
STRICT = [{"type": "function", "function": {**function, "strict": True}} for function in FUNCTIONS]
ASK: dict[str, Any] = {"tools": TOOLS, "max_tokens": 1500, "parallel_tool_calls": False}
SEEDS = range(5)


@pytest.fixture(scope="module")
def rambling(tokenizer: Tokenizer) -> Server:
    return Server(tokenizer, Rambling(tokenizer))


def is_trip(text: str) -> bool:
    trip = json.loads(text)
    return {*trip} == {"city", "days"} and len(trip["city"]) <= 12 and trip["days"] in range(10)


@pytest.mark.parametrize("thinking", THINKING)
@pytest.mark.parametrize("format_", [None, FORMAT], ids=["", "format"])
@pytest.mark.parametrize("named", [False, True])
def test_a_required_call_is_a_call(rambling: Server, thinking: str, format_: Any, named: bool) -> None:
    choice = {"type": "function", "function": {"name": "book"}} if named else "required"
    for seed in SEEDS:
        fields = {**ASK, **THINKING[thinking], "response_format": format_, "tool_choice": choice, "seed": seed}
        answer = rambling.answer(**fields)["choices"][0]
        assert (answer["finish_reason"], answer["message"]["content"] or "") == ("tool_calls", "")
        (call,) = answer["message"]["tool_calls"]
        assert call["function"]["name"] in (("book",) if named else ("plan", "book"))
        assert is_trip(call["function"]["arguments"])
        chunks = rambling.chunks(**fields)
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] == "tool_calls"


@pytest.mark.parametrize("thinking", THINKING)
def test_so_it_is_in_the_other_interfaces(rambling: Server, thinking: str) -> None:
    flat = [{"type": "function", **function} for function in FUNCTIONS]
    effort = {"reasoning": {"effort": "none"}} if thinking == "off" else THINKING[thinking]
    responses = {
        "input": "Q", "tools": flat, "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 1500,
        "text": {"format": {"type": "json_schema", "name": "trip", "schema": TRIP}}, **effort,
    }  # fmt: skip
    messages = {
        "messages": [{"role": "user", "content": "Q"}], "max_tokens": 1500,
        "tools": [{"name": f["name"], "input_schema": TRIP} for f in FUNCTIONS],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, **THINKING[thinking],
        "output_config": {"format": {"type": "json_schema", "schema": TRIP}},
    }  # fmt: skip
    for _ in SEEDS:
        output = rambling.request("POST", "/v1/responses", json=responses).json()["output"]
        assert [item["type"] for item in output if item["type"] != "reasoning"] == ["function_call"]
        assert is_trip(output[-1]["arguments"])
        answer = rambling.request("POST", "/v1/messages", json=messages).json()
        assert answer["stop_reason"] == "tool_use"
        assert is_trip(json.dumps(answer["content"][-1]["input"]))


@pytest.mark.parametrize("thinking", THINKING)
@pytest.mark.parametrize("tools", [False, True])
def test_what_is_no_call_follows_the_format(rambling: Server, thinking: str, tools: bool) -> None:
    for seed in SEEDS:
        fields = {**THINKING[thinking], "response_format": FORMAT, "max_tokens": 1500, "seed": seed}
        answer = rambling.answer(**fields, **({"tools": STRICT} if tools else {}))["choices"][0]
        calls = answer["message"].get("tool_calls") or []
        assert answer["finish_reason"] == ("tool_calls" if calls else "stop")
        assert all(is_trip(call["function"]["arguments"]) for call in calls)
        assert calls or is_trip(answer["message"]["content"])


def test_with_a_choice_of_auto_a_call_is_one_and_words_are_json(tokenizer: Tokenizer) -> None:
    call = OPEN + invoke(parameter("city", "Rome") + parameter("days", "3", text=False), "book")
    for wanted, finish in ((call, "tool_calls"), ('{"city": "Rome", "days": 3}', "stop"), ("In words.", "stop")):
        answer = wilful(tokenizer, wanted).answer(**ASK, **THINKING["off"], response_format=FORMAT)["choices"][0]
        assert answer["finish_reason"] == finish
        if finish == "stop":
            assert is_trip(answer["message"]["content"])
        else:
            assert answer["message"]["tool_calls"][0]["function"] == {
                "name": "book", "arguments": '{"city": "Rome", "days": 3}',
            }  # fmt: skip
