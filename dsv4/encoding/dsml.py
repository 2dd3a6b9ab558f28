"""DSML, the markup of tool calls: writing it, and the pieces of its grammar that both parsers share.

    \\n\\n<｜DSML｜tool_calls>
    <｜DSML｜invoke name="f">
    <｜DSML｜parameter name="city" string="true">Rome</｜DSML｜parameter>
    <｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜tool_calls>

Nothing is escaped: a value ends at the first closing tag, so a value that contains one cannot be written
faithfully.
"""

import json
import re
from typing import Any

from dsv4.encoding.dialect import Dialect
from dsv4.encoding.messages import describe, expect_list, expect_mapping, expect_text
from dsv4.encoding.segments import SegmentWriter

# a parameter's header up to its value; the key ends at the first place where the second attribute can stand
ATTRIBUTES = re.compile(r'" string="(true|false)">')
PARAMETER_PREFIX = ' name="'


def to_json(value: Any, where: str = "value") -> str:
    """JSON as the release writes it: ASCII is not forced, separators are `, ` and `: `.

    Raises ValueError naming `where` if the value cannot be written as JSON.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{where}: cannot be written as JSON ({error})") from error


def write_tool_calls(out: SegmentWriter, calls: Any, where: str, dialect: Dialect) -> None:
    """Append a whole tool-call block for OpenAI-style `calls`, the leading blank line included.

    `arguments` is a JSON string of an object; what is not valid JSON, or not a string, becomes a single
    parameter named `arguments`. Raises ValueError naming `where` and the field.
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
        _write_parameters(out, _parameters(function["arguments"], f"{place}.arguments"), place, dialect)
        out.markup(f"\n{dialect.invoke_close}>")
    out.markup(f"\n{dialect.calls_close}")


def _parameters(arguments: Any, where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(arguments)
    except (TypeError, ValueError, RecursionError):
        return {"arguments": arguments}
    if not isinstance(parsed, dict):
        raise ValueError(f"{where}: expected a JSON object, got {describe(parsed)}")
    return parsed


def _write_parameters(out: SegmentWriter, parameters: dict[str, Any], place: str, dialect: Dialect) -> None:
    for position, (key, value) in enumerate(parameters.items()):
        is_text = isinstance(value, str)
        out.markup(("\n" if position else "") + f"{dialect.parameter_open}{PARAMETER_PREFIX}")
        out.data(key)
        out.markup(f'" string="{"true" if is_text else "false"}">')
        out.data(value if is_text else to_json(value, f"{place}.arguments"))
        out.markup(f"{dialect.parameter_close}>")


def invoke_name(header: str, *, strict: bool) -> str | None:
    """The tool's name from the text between `<｜DSML｜invoke` and the next tag; None if it does not fit the
    grammar.

    Strict: the header ends in `>` and one newline, or two (an invoke without parameters is written with an
    empty line). Otherwise any white space may follow the `>`.
    """
    header = header.lstrip()
    if strict:
        body = header.removesuffix("\n") if header.endswith(">\n\n") else header
        ending = '">\n'
    else:
        body, ending = header.rstrip(), '">'
    start = 'name="'
    if len(body) < len(start) + len(ending) or not body.startswith(start) or not body.endswith(ending):
        return None
    return body[len(start) : -len(ending)]


def json_text(text: str) -> str:
    """`text` as the inside of a JSON string. Works piece by piece: the result of a concatenation is the
    concatenation of the results, which is what lets arguments be streamed.
    """
    return json.dumps(text, ensure_ascii=False)[1:-1]
