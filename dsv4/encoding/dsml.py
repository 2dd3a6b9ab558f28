"""DSML, the markup of tool calls: the pieces of its grammar that the writer (`write_calls`) and both parsers share.

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
