"""Conversations with tools: the model's own calls are executed, turn after turn, from the first question on."""

import json
from collections.abc import Mapping
from typing import Any

from dsv4.posttraining.verifiers import reward
from dsv4.verify.answer import Call
from recipes.nano.grading.dialogue import Dialogue, Turn
from recipes.nano.grading.figures import Outcome
from recipes.nano.items.item import Item
from recipes.nano.items.tools import result_of

ROUNDS = 6  # answers to one question of the user at most
_MARK = "｜DSML｜"
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


def fault_of(item: Item, call: Call) -> str | None:
    """What is wrong with a call by the schema it was given; None for a valid one."""
    functions = {tool["function"]["name"]: tool["function"] for tool in item.tools}
    if call.name not in functions:
        return f"there is no tool {call.name}"
    try:
        given = json.loads(call.arguments)
    except ValueError:
        return "the arguments are no JSON"
    if not isinstance(given, dict):
        return "the arguments are no object"
    schema = functions[call.name].get("parameters", {})
    properties: Mapping[str, Any] = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in given:
            return f"{name} is missing"
    for name, value in given.items():
        if name not in properties:
            return f"there is no argument {name}"
        kind, allowed = properties[name]["type"], properties[name].get("enum")
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
            return f"{name} is no {kind}"
        if allowed and value not in allowed:
            return f"{name} is none of {', '.join(allowed)}"
    return None


async def play(item: Item, dialogue: Dialogue) -> Outcome:
    """Ask all questions of the item in turn; the answer to the last one counts. Every call is checked."""
    counts = {"calls": 0, "valid": 0, "malformed": 0, "turns": 0}
    tokens, turn = 0, Turn("", "", (), 0, False)
    for message in item.messages:
        if message["role"] != "user":
            continue
        dialogue.say(message["content"])
        for _ in range(ROUNDS):
            turn = await dialogue.answer()
            tokens += turn.tokens
            counts["turns"] += 1
            counts["calls"] += len(turn.calls)
            counts["valid"] += sum(fault_of(item, call) is None for call in turn.calls)
            # a block that is no call comes as text; what was cut within one is no whole call either
            counts["malformed"] += _MARK in turn.content or (turn.cut and bool(turn.calls))
            if not turn.calls:
                break
            dialogue.results([(call, _result(item, call)) for call in turn.calls])
    score = 0.0 if turn.cut or turn.calls else reward(item.verifier, turn.content, item.answer)
    return Outcome(item.task, score, tokens, turn.cut, counts)


def _result(item: Item, call: Call) -> str:
    fault = fault_of(item, call)
    return f"error: {fault}" if fault else result_of(item, call.name, json.loads(call.arguments))
