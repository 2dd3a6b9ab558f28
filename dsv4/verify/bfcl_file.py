"""Questions in the form of BFCL's files (Berkeley function calling leaderboard), a JSON object a line:

    {"id": "simple_python_0", "question": [[{"role": "user", "content": "..."}]],
     "function": [{"name": "math.factorial", "description": "...", "parameters": {"type": "dict", ...}}]}

Questions whose id has `irrelevance` in it need no call, all others do. Other fields are ignored: which call is the
right one is a question about the model, and `dsv4 eval --suite bfcl` grades it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv4.verify.questions import Question

# types of BFCL's function documents -> JSON Schema, as its harness sends them to an OpenAI endpoint
JSON_TYPES = {
    "integer": "integer", "number": "number", "float": "number", "string": "string", "boolean": "boolean",
    "bool": "boolean", "array": "array", "list": "array", "tuple": "array", "dict": "object", "object": "object",
    "any": "string",
}  # fmt: skip
NO_CALL = "irrelevance"


def read_questions(file: Path) -> list[Question]:
    """All questions of a file. Raises OSError, and ValueError naming the line that is no question of one turn."""
    found: list[Question] = []
    # NOTE: not by splitlines, which also cuts at line separators within JSON texts
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                found.append(_question(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
                problem = f"no question of BFCL's form ({type(error).__name__}: {error})"
                raise ValueError(f"--questions {file}, line {number}: {problem}") from None
    if not found:
        raise ValueError(f"--questions {file} has no questions")
    return found


def _question(raw: Mapping[str, Any]) -> Question:
    [messages] = raw["question"]  # one turn
    messages = tuple({"role": str(message["role"]), "content": str(message["content"])} for message in messages)
    tools = tuple(openai_tool(function) for function in raw["function"])
    if not messages or not tools:
        raise ValueError("a question needs messages and functions")
    called = NO_CALL not in str(raw["id"])
    return Question("BFCL", messages[-1]["content"], tools, (), messages=messages, called=called)


def tool_name(name: str) -> str:
    """A name as OpenAI's interface allows it: dots become underscores."""
    return name.replace(".", "_")


def openai_tool(function: Mapping[str, Any]) -> dict[str, Any]:
    """BFCL's document of a function as a tool of OpenAI's interface."""
    parameters = _schema({**function["parameters"], "type": "dict"})
    described = {"name": tool_name(function["name"]), "description": function.get("description", "")}
    return {"type": "function", "function": {**described, "parameters": parameters}}


def _schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    kind = schema.get("type", "string")
    made = {**schema, "type": JSON_TYPES.get(kind, "string")}
    if kind == "float":
        made["format"] = "float"
        made["description"] = f"{schema.get('description', '')} This is a float type value.".strip()
    if isinstance(schema.get("properties"), Mapping):
        made["properties"] = {name: _schema(inner) for name, inner in schema["properties"].items()}
    if isinstance(schema.get("items"), Mapping):
        made["items"] = _schema(schema["items"])
    return made
