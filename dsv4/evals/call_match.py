"""Whether calls of tools are the expected ones, by the published rules of BFCL (its AST match).

An expected call names a tool, and for each argument the values that are right; "" among them means that the argument
may be missing. A call is right if all required arguments are there, none is unknown, each has the type that the schema
says, and each value is one of the right ones. Text is compared without case, spaces and , . / - _ * ^, and ' is as good
as ". A whole number passes for a float, never the other way round; true is no number.

Where the published checker compares deep values as Python does (lists in lists, dictionaries in dictionaries), texts in
them are compared as other text here: one rule at every depth.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dsv4.verify.bfcl_file import tool_name
from dsv4.verify.bfcl_schema import JSON_TYPES

Right = Mapping[str, Mapping[str, Sequence[Any]]]  # tool -> argument -> right values
MISSING = ""  # among the right values: the argument may be left out
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
_IGNORED = re.compile(r"[ ,./\-_*^]")


def calls_differ(
    functions: Sequence[Mapping[str, Any]], calls: Sequence[tuple[str, Any]], right: Sequence[Right]
) -> str:
    """Why the calls (name, arguments) are not the expected ones, in any order; "" if they are. Each expected call takes
    the first call that is left and fits, as published."""
    if len(calls) != len(right):
        return f"{len(calls)} calls, {len(right)} expected"
    left = list(calls)
    for expected in right:
        [(name, arguments)] = expected.items()
        function = next((each for each in functions if each["name"] == name), None)
        if function is None:
            raise ValueError(f"ground_truth: no function {name!r} in the question")
        reasons = [call_differs(function, call, arguments) for call in left]
        if "" not in reasons:
            return reasons[0] if len(reasons) == 1 else f"no call for {name}: {'; '.join(reasons)}"
        del left[reasons.index("")]
    return ""


def call_differs(function: Mapping[str, Any], call: tuple[str, Any], right: Mapping[str, Sequence[Any]]) -> str:
    """Why one call is not the expected one; "" if it is."""
    name, arguments = call
    if name != tool_name(function["name"]):
        return f"{name} is called, not {tool_name(function['name'])}"
    if not isinstance(arguments, Mapping):
        return "the arguments are no JSON object"
    properties = function["parameters"].get("properties", {})
    for each in function["parameters"].get("required", ()):
        if each not in arguments:
            return f"{each} is missing"
    for each, value in arguments.items():
        if each not in properties or each not in right:
            return f"{each} is not expected"
        if why := _argument_differs(value, properties[each], right[each]):
            return f"{each}: {why}"
    missing = [each for each, values in right.items() if each not in arguments and MISSING not in values]
    return f"{missing[0]} is missing" if missing else ""


def _argument_differs(value: Any, schema: Mapping[str, Any], right: Sequence[Any]) -> str:
    wanted = schema.get("type", "string")
    if not _has_type(value, wanted):
        # the right value may be the name of a variable in place of a value: then its type counts, and its spelling
        if type(value) in {type(each) for each in right if each != MISSING} and value in right:
            return ""
        return f"{value!r} is {_TYPES.get(type(value), 'null')}, not {JSON_TYPES.get(wanted, 'string')}"
    if any(_same(value, each) for each in right if each != MISSING or value == MISSING):
        return ""
    return f"{value!r} is none of {list(right)!r}"


def _has_type(value: Any, wanted: str) -> bool:
    """The published types: 3 is a float, 3.0 is no integer, and a bool is neither."""
    kind = _TYPES.get(type(value))
    expected = JSON_TYPES.get(wanted, "string")
    return kind == expected or (kind == "integer" and expected == "number")


def _same(value: Any, right: Any) -> bool:
    """An argument, or a part of one, and a right value. The values of a right dictionary are lists of right ones."""
    if isinstance(value, str) and isinstance(right, str):
        return _plain(value) == _plain(right)
    if isinstance(value, bool | None) or isinstance(right, bool | None):
        return value is right
    if isinstance(value, list) and isinstance(right, list):
        return len(value) == len(right) and all(_same(v, r) for v, r in zip(value, right, strict=True))
    if isinstance(value, Mapping) and isinstance(right, Mapping):
        known = all(name in right and _one_of(inner, right[name]) for name, inner in value.items())
        return known and all(name in value or MISSING in _choices(values) for name, values in right.items())
    return type(value) in (int, float) and type(right) in (int, float) and value == right


def _one_of(value: Any, right: Any) -> bool:
    return any(_same(value, each) for each in _choices(right))


def _choices(right: Any) -> Sequence[Any]:
    return right if isinstance(right, list) else [right]


def _plain(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')
