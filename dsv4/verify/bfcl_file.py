"""Questions in the form of BFCL's files (Berkeley function calling leaderboard), a JSON object a line:

    {"id": "simple_python_0", "question": [[{"role": "user", "content": "..."}]],
     "function": [{"name": "math.factorial", "description": "...", "parameters": {"type": "dict", ...}}]}

Questions whose id has `irrelevance` in it need no call, all others do. Other fields are ignored: which call is the
right one is a question about the model, and `dsv4 eval --suite bfcl` grades it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsv4.verify.bfcl_schema import object_schema, wrong
from dsv4.verify.questions import Question

NO_CALL = "irrelevance"


def read_questions(files: Iterable[Path]) -> tuple[list[Question], list[str]]:
    """All questions of some files, and what is wrong with each line that is no question of one turn, with its file,
    line and field. Raises OSError, and ValueError for a file without a question."""
    questions: list[Question] = []
    faults: list[str] = []
    for file in files:
        good, bad = _read(file)
        if not good:
            first = f"; the first of {len(bad)} wrong lines: {bad[0]}" if bad else ""
            raise ValueError(f"--questions {file} has no questions{first}")
        questions += good
        faults += bad
    return questions, faults


def _read(file: Path) -> tuple[list[Question], list[str]]:
    good: list[Question] = []
    bad: list[str] = []
    # NOTE: not by splitlines, which also cuts at line separators within JSON texts
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        place = f"{file}, line {number}"
        if line.strip():
            try:
                good.append(replace(_question(_decoded(line)), place=place))
            except ValueError as error:
                bad.append(f"{place}: {error}")
    return good, bad


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("the line must be a JSON object, got one that is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"the line must be a JSON object: {error}") from None


def _question(raw: object) -> Question:
    """Raises ValueError naming the field."""
    if not isinstance(raw, Mapping):
        raise wrong("the line", "must be a JSON object", raw)
    turns = _field(raw, "question", list, "a list with the messages of one turn")
    if len(turns) != 1:
        raise ValueError(f"question must have one turn, got {len(turns)}")
    messages = tuple(_messages(turns[0]))
    functions = _field(raw, "function", list, "a list of functions")
    if not functions:
        raise ValueError("function must have at least one function, got none")
    tools = tuple(openai_tool(function, f"function[{index}]") for index, function in enumerate(functions))
    called = NO_CALL not in _field(raw, "id", str, "a text")
    return Question("BFCL", messages[-1]["content"], tools, (), messages=messages, called=called)


def _messages(turn: object) -> Iterable[dict[str, str]]:
    if not isinstance(turn, list) or not turn:
        raise wrong("question[0]", "must be a list of at least one message", turn)
    for index, message in enumerate(turn):
        place = f"question[0][{index}]"
        if not isinstance(message, Mapping):
            raise wrong(place, "must be a message", message)
        yield {name: _field(message, name, str, "a text", f"{place}.") for name in ("role", "content")}


def _field(raw: Mapping[str, Any], name: str, kind: type, what: str, place: str = "") -> Any:
    if name not in raw:
        raise ValueError(f"{place}{name} is missing; it must be {what}")
    if not isinstance(raw[name], kind):
        raise wrong(f"{place}{name}", f"must be {what}", raw[name])
    return raw[name]


def tool_name(name: str) -> str:
    """A name as OpenAI's interface allows it: dots become underscores."""
    return name.replace(".", "_")


def openai_tool(function: object, place: str = "function") -> dict[str, Any]:
    """BFCL's document of a function as a tool of OpenAI's interface; one without parameters takes no arguments. place:
    its name in messages. Raises ValueError naming the field."""
    if not isinstance(function, Mapping):
        raise wrong(place, "must be a function", function)
    name = tool_name(_field(function, "name", str, "a text", f"{place}."))
    described = {"name": name, "description": ""}
    if "description" in function:
        described["description"] = _field(function, "description", str, "a text", f"{place}.")
    parameters = object_schema(function.get("parameters", {"properties": {}}), f"{place}.parameters")
    return {"type": "function", "function": {**described, "parameters": parameters}}
