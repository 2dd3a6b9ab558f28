"""Completions that several test files parse, and an independent reading of the lenient rules."""

import json
import re

from dsv4.encoding import V4, ParsedCompletion, ParsedToolCall

PARAMETER = '<｜DSML｜parameter name="{}" string="{}">{}</｜DSML｜parameter>\n'
X1 = PARAMETER.format("x", "true", "1")
CALL_F = f'<｜DSML｜invoke name="f">\n{X1}</｜DSML｜invoke>\n'
CALL_G = (
    '<｜DSML｜invoke name="g">\n'
    + PARAMETER.format("code", "true", 'if a < b:\n\tprint("热海 </p>")')
    + PARAMETER.format("o", "false", '{"a": [1, 2]}')
    + "</｜DSML｜invoke>\n"
)
CALL_EMPTY = '<｜DSML｜invoke name="now">\n\n</｜DSML｜invoke>\n'


def block(*calls: str) -> str:
    return "\n\n<｜DSML｜tool_calls>\n" + "".join(calls) + "</｜DSML｜tool_calls>"


# (text, thinking_mode): accepted by the strict parser
WELL_FORMED = [
    (V4.eos, "chat"),
    ("Hello" + V4.eos, "chat"),
    ("why\n</think>\n\nBecause a < b｜c" + V4.eos, "thinking"),
    ("</think>" + V4.eos, "thinking"),
    (block(CALL_F), "chat"),
    ("pre\n" + block(CALL_F, CALL_G) + V4.eos, "chat"),
    ("r</think>pre" + block(CALL_G, CALL_EMPTY) + V4.eos, "thinking"),
    (block(), "chat"),
    (
        block('<｜DSML｜invoke name="f">\n' + PARAMETER.format("x", "false", "{oops") + "</｜DSML｜invoke>\n"),
        "chat",
    ),
    (
        block('<｜DSML｜invoke name="a"b">\n' + PARAMETER.format('k"', "true", V4.eos) + "</｜DSML｜invoke>\n"),
        "chat",
    ),
    (
        block('<｜DSML｜invoke name="">\n' + PARAMETER.format("", "true", "</｜DSML｜invoke>") + "</｜DSML｜invoke>\n"),
        "chat",
    ),
]

# broken in every way we know; the strict parser rejects them
BROKEN = [
    ("no end", "chat"),
    ("no close" + V4.eos, "thinking"),
    ("a</think>b</think>c<think>" + V4.eos + "x", "thinking"),
    ("｜DSML｜ <｜DSML｜parameter <｜DSML｜tool" + V4.eos, "chat"),
    ("reasoning" + block(CALL_F) + V4.eos, "thinking"),
    ("\n" + CALL_F + "</｜DSML｜tool_calls>", "chat"),
    (block(CALL_F) + " \n and more" + V4.eos, "chat"),
    (block(CALL_F + "junk"), "chat"),
    (block(CALL_F.replace("parameter>\n", "parameter> ")), "chat"),
    (block(CALL_F.replace("</｜DSML｜par", "/｜DSML｜par")), "chat"),
    (block(CALL_F.replace('"true"', '"yes"')), "chat"),
    (block(CALL_F.replace("invoke name", "invoke nam")), "chat"),
    (block(CALL_F.replace("parameter name", "parameter  name")), "chat"),
    (block(CALL_F.replace(X1, X1 + X1)), "chat"),
    (block(CALL_F.replace(X1, X1 + "junk" + X1)), "chat"),
    ("\n\n<｜DSML｜tool_calls>\n" + CALL_F + V4.eos, "chat"),
    (
        '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="true">1' + V4.eos,
        "chat",
    ),
    ("\n\n<｜DSML｜tool_callsX", "chat"),
]

WHOLE = [V4.eos, V4.bos, "<think>", "</think>", "｜DSML｜"]
WHOLE += [n + "<｜DSML｜" + tag for n in ("\n\n", "\n", "") for tag in ("tool_calls", "invoke")]
# a marker, or the start of one at the end of the text
UNFINISHED = sorted({marker[:n] for marker in WHOLE for n in range(1, len(marker))}, key=len, reverse=True)
MARKER = re.compile("|".join(WHOLE) + rf"|(?P<unfinished>(?:{'|'.join(UNFINISHED)})\Z)")


def lenient(text: str, thinking_mode: str) -> ParsedCompletion:
    """What `parse_completion` promises, written as one pass over the whole text."""
    result = ParsedCompletion()
    field = "reasoning_content" if thinking_mode == "thinking" else "content"
    position = 0
    while match := MARKER.search(text, position):
        setattr(result, field, getattr(result, field) + text[position : match.start()])
        position = match.end()
        if end := match["unfinished"]:
            if len(end.lstrip("\n")) < 3 and "｜D" not in end and not end.startswith("\n\n<"):
                position = match.start()
            break
        if match[0] == V4.eos:
            result.ended = True
            return result
        if match[0] == "</think>":
            field = "content"
        if match[0].endswith("tool_calls"):
            _calls(text[position:], result, in_header=False)
            return result
        if match[0].endswith("invoke"):
            _calls(text[position:], result, in_header=True)
            return result
    setattr(result, field, getattr(result, field) + text[position:])
    return result


def _between(text: str, *tags: str) -> tuple[str, str | None]:
    """(rest, tag) behind `>`, white space and a tag; tag "cut" if the text is too short, None if wrong."""
    if not text:
        return "", "cut"
    rest = text[1:].lstrip()
    for tag in (*tags, V4.eos):
        if text[0] == ">" and rest.startswith(tag):
            return rest[len(tag) :], tag
    return "", "cut" if text[0] == ">" and any(tag.startswith(rest) for tag in (*tags, V4.eos)) else None


def _calls(text: str, result: ParsedCompletion, *, in_header: bool) -> None:
    while True:
        if not in_header:
            text, tag = _between(text, "<｜DSML｜invoke", "</｜DSML｜tool_calls>")
            if tag == "cut":
                return
            result.malformed = tag in (None, V4.eos)
            result.ended = tag is not None and tag != "<｜DSML｜invoke"
            if tag == "</｜DSML｜tool_calls>":
                after = text.lstrip()
                result.malformed = not (after.startswith(V4.eos) or V4.eos.startswith(after))
            if tag != "<｜DSML｜invoke":
                return
        in_header = False
        header = re.match(r"(?s)(.*?)(<｜DSML｜parameter|</｜DSML｜invoke)", text)
        if header is None:
            return
        name = re.fullmatch(r'(?s)\s*name="(.*)">\s*', header[1])
        if name is None:
            result.malformed = True
            return
        result.tool_calls.append(ParsedToolCall(name[1], "{"))
        text = text[header.end() :]
        rest = text if header[2].startswith("</") else _parameters(text, result)
        if rest is None:
            return
        text = rest
        result.tool_calls[-1].arguments += "}"
        result.tool_calls[-1].complete = True


def _parameters(text: str, result: ParsedCompletion) -> str | None:
    call, keys = result.tool_calls[-1], set[str]()
    while True:
        body, closed, rest = text.partition("/｜DSML｜parameter")
        start = re.match(r'(?s) name="(.*?)" string="(true|false)">', body)
        prefix = ' name="'
        if start is None or start[1] in keys:
            wrong = start is not None or closed or not (body.startswith(prefix) or prefix.startswith(body))
            result.malformed = bool(wrong)
            return None
        call.arguments += (", " if keys else "") + json.dumps(start[1], ensure_ascii=False) + ": "
        keys.add(start[1])
        value = body[start.end() :]
        proper = bool(closed) and value.endswith("<")
        if proper:
            value = value[:-1]
        elif not closed:
            result.ended = value.endswith(V4.eos)
            value = _without_partial(value)
        quoted = start[2] == "true"
        text_of_value = json.dumps(value, ensure_ascii=False)[1:-1] if quoted else value
        call.arguments += ('"' if quoted else "") + text_of_value + ('"' if quoted and proper else "")
        if not proper:
            result.malformed = bool(closed)
            return None
        text, tag = _between(rest, "<｜DSML｜parameter", "</｜DSML｜invoke")
        if tag == "</｜DSML｜invoke":
            return text
        if tag != "<｜DSML｜parameter":
            result.malformed = tag in (None, V4.eos)
            result.ended = tag == V4.eos
            return None


def _without_partial(value: str) -> str:
    """Drop the start of a closing tag, then an end token or the start of one, from the end of a cut value."""
    for markers in (["</｜DSML｜parameter", "/｜DSML｜parameter"], [V4.eos]):
        starts = [m[:n] for m in markers for n in range(1, len(m) + (m == V4.eos))]
        value = value[: len(value) - max((len(s) for s in starts if value.endswith(s)), default=0)]
    return value
