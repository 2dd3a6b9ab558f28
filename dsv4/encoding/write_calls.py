"""Calls of tools, written into a prompt as DSML."""

import json
from collections.abc import Mapping
from typing import Any

from dsv4.encoding.dialect import Dialect
from dsv4.encoding.dsml import PARAMETER_PREFIX
from dsv4.encoding.messages import describe, expect_list, expect_mapping, expect_text
from dsv4.encoding.numbers import number_json, parse_object
from dsv4.encoding.segments import SegmentWriter


def write_tool_calls(out: SegmentWriter, calls: Any, where: str, dialect: Dialect) -> None:
    """Append a whole tool-call block for OpenAI-style `calls`, the leading blank line included.

    `arguments` is a JSON string of an object; a value that is not valid JSON, or not a string, becomes a single
    parameter named `arguments`; in a dialect of the service JSON of another type does too. Raises ValueError naming
    `where` and the field.
    """
    out.markup(f"\n\n{dialect.calls_open}>\n")
    for index, call in enumerate(expect_list(calls, where)):
        place = f"{where}[{index}].function"
        function = expect_mapping(expect_mapping(call, f"{where}[{index}]").get("function"), place)
        if "arguments" not in function:
            raise ValueError(f"{place}.arguments: missing; expected a JSON string")
        out.markup(("\n" if index else "") + f'{dialect.invoke_open} name="')
        out.data(expect_text(function.get("name"), f"{place}.name"))
        out.markup('">\n')
        parameters = _parameters(function["arguments"], f"{place}.arguments", dialect)
        _write_parameters(out, parameters, place, dialect)
        out.markup(("\n" if parameters or dialect.empty_line else "") + f"{dialect.invoke_close}>")
    out.markup(f"\n{dialect.calls_close}")


def _parameters(arguments: Any, where: str, dialect: Dialect) -> Mapping[str, Any]:
    if dialect.service:
        parsed = parse_object(arguments) if isinstance(arguments, str) else arguments
        return parsed if isinstance(parsed, Mapping) else {"arguments": arguments}
    try:
        parsed = json.loads(arguments)
    except (TypeError, ValueError, RecursionError):
        return {"arguments": arguments}
    if not isinstance(parsed, dict):
        raise ValueError(f"{where}: expected a JSON object, got {describe(parsed)}")
    return parsed


def _write_parameters(out: SegmentWriter, parameters: Mapping[str, Any], place: str, dialect: Dialect) -> None:
    for position, (key, value) in enumerate(parameters.items()):
        is_text = isinstance(value, str)
        out.markup(("\n" if position else "") + f"{dialect.parameter_open}{PARAMETER_PREFIX}")
        out.data(key)
        out.markup(f'" string="{"true" if is_text else "false"}">')
        out.data(value if is_text else number_json(value, f"{place}.arguments", dialect))
        out.markup(f"{dialect.parameter_close}>")
