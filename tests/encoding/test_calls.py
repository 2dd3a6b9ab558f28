"""Blocks of calls that models write: taken, or visibly broken; whole and in pieces of any size."""

import json
from typing import Any

import pytest

from dsv4.encoding import V4, ParsedCompletion, StreamParser, parse_completion

D = V4.dsml
EOS = V4.eos
FUNCTIONS = [
    {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "string"}, "n": {"type": "integer"}, "o": {"type": "object"}},
        },
    },
    {"name": "free"},
]
OPEN, CLOSE = f"\n\n<{D}tool_calls>\n", f"</{D}tool_calls>"
X = f'<{D}parameter name="x" string="true">a</{D}parameter>\n'
N = f'<{D}parameter name="n" string="false">3</{D}parameter>\n'


def invoke(inner: str, name: str = 'name="f"') -> str:
    return f"<{D}invoke {name}>\n{inner}</{D}invoke>\n"


def parse(text: str, functions: Any = FUNCTIONS) -> ParsedCompletion:
    """Parsed at once and character by character, which must give the same."""
    whole = parse_completion(text, "chat", functions=functions)
    parser, pieces = StreamParser("chat", functions=functions), ParsedCompletion()
    for delta in [delta for char in text for delta in parser.feed(char)] + parser.finish():
        pieces.add(delta)
    pieces.ended, pieces.malformed, pieces.broken = parser.ended, parser.malformed, parser.broken
    assert pieces == whole
    return whole


TAKEN = {
    "released form": (invoke(X + N), {"x": "a", "n": 3}),
    "no parameters": (invoke("\n"), {}),
    "no line": (invoke(""), {}),
    "no string attribute, text": (invoke(X.replace(' string="true"', "")), {"x": "a"}),
    "no string attribute, number": (invoke(N.replace(' string="false"', "")), {"n": 3}),
    "attributes swapped": (invoke(f'<{D}parameter string="true" name="x">a</{D}parameter>\n'), {"x": "a"}),
    "single quotes": (invoke(X.replace('"', "'"), "name='f'"), {"x": "a"}),
    "no quotes": (invoke(X.replace('"true"', "true")), {"x": "a"}),
    "capital": (invoke(X.replace("true", "True")), {"x": "a"}),
    "more spaces": (invoke(X.replace(" name", "\n  name"), ' name="f" '), {"x": "a"}),
    "JSON body": (invoke('{"x": "a", "n": 3}\n'), {"x": "a", "n": 3}),
    "Python body": (invoke("{'x': 'a', 'n': None,}\n"), {"x": "a", "n": None}),
    "name in another case": (invoke(X, 'name="F"'), {"x": "a"}),
    "name with a prefix": (invoke(X, 'name="functions.f"'), {"x": "a"}),
    "wrapper": (invoke(f'<{D}parameter name="arguments" string="false">{{"x": "a"}}</{D}parameter>\n'), {"x": "a"}),
    "wrapper of text": (invoke(f'<{D}parameter name="input" string="true">{{"x": "a"}}</{D}parameter>\n'), {"x": "a"}),
    "no wrapper: does not fit": (
        invoke(f'<{D}parameter name="input" string="false">{{"z": 1}}</{D}parameter>\n'),
        {"input": {"z": 1}},
    ),
    "no wrapper: more follows": (
        invoke(f'<{D}parameter name="input" string="false">{{"x": "b"}}</{D}parameter>\n' + X),
        {"input": {"x": "b"}, "x": "a"},
    ),
    "no JSON": (invoke(N.replace("3", "three")), {"n": "three"}),
    "closing tag of another element in a value": (
        invoke(X.replace(">a<", f">a</{D}invoke>\n<{D}invoke<")),
        {"x": f"a</{D}invoke>\n<{D}invoke"},
    ),
    "start of a closing tag in a value": (invoke(X.replace(">a<", f"></{D}para</<")), {"x": f"</{D}para</"}),
}


@pytest.mark.parametrize(("inner", "arguments"), TAKEN.values(), ids=TAKEN)
def test_what_is_taken(inner: str, arguments: dict[str, Any]) -> None:
    result = parse(f"Text{OPEN}{inner}{CLOSE}{EOS}")
    (call,) = result.tool_calls
    assert (call.name, call.complete, json.loads(call.arguments)) == ("f", True, arguments)
    assert (result.content, result.ended, result.malformed, result.broken) == ("Text", True, False, False)


def test_names_do_not_matter_without_functions() -> None:
    result = parse(f"{OPEN}{invoke(X, chr(110) + 'ame=' + chr(34) + 'any' + chr(34))}{CLOSE}", None)
    assert [call.name for call in result.tool_calls] == ["any"]


# (block, how many calls were begun, whether its text is shown)
BROKEN = {
    "unknown name": (OPEN + invoke(X, 'name="rm"') + CLOSE, 0),
    "empty name": (OPEN + invoke(X, 'name=""') + CLOSE, 0),
    "no name": (OPEN + invoke(X, 'id="f"') + CLOSE, 0),
    "empty block": (OPEN + CLOSE, 0),
    "text in the block": (OPEN + "I call: " + invoke(X) + CLOSE, 0),
    "text in the invoke": (OPEN + invoke("city: Rome\n") + CLOSE, 0),
    "list as body": (OPEN + invoke("[1]\n") + CLOSE, 0),
    "body and parameters": (OPEN + invoke('{"x": "a"}\n' + N) + CLOSE, 0),
    "wrong tag": (OPEN + f"<{D}call>" + CLOSE, 0),
    "end in a header": (OPEN + f'<{D}invoke name="f">', 0),
    "parameter without name": (OPEN + invoke(X.replace("name=", "key=")) + CLOSE, 1),
    "string is neither": (OPEN + invoke(X.replace('"true"', '"yes"')) + CLOSE, 1),
    "parameter twice": (OPEN + invoke(X + X) + CLOSE, 1),
    "text between parameters": (OPEN + invoke(X + "and\n" + N) + CLOSE, 1),
    "end in a value": (OPEN + f'<{D}invoke name="f">\n<{D}parameter name="x" string="true">a', 1),
    "end behind a parameter": (OPEN + f'<{D}invoke name="f">\n{X}', 1),
    "invoke not closed": (OPEN + f'<{D}invoke name="f">\n{X}{CLOSE}', 1),
    "long header": (OPEN + invoke(X.replace("name=", " " * 5000 + "name=")) + CLOSE, 1),
}


@pytest.mark.parametrize(("text", "begun"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_shown(text: str, begun: int) -> None:
    result = parse(f"Text{text}{EOS}")
    assert result.broken
    assert result.malformed
    assert result.ended
    assert [call.complete for call in result.tool_calls] == [False] * begun
    assert result.content == "Text" + text
    assert result.message()["tool_calls"] == []


@pytest.mark.parametrize(
    ("rest", "shown"),
    [
        ("", ""),
        (invoke(X, 'name="rm"') + CLOSE, "\n" + invoke(X, 'name="rm"') + CLOSE),
        ("junk" + CLOSE, "\njunk" + CLOSE),
    ],
)
def test_a_whole_call_before_the_break_stays(rest: str, shown: str) -> None:
    result = parse(f"Text{OPEN}{invoke(X)}{rest}{EOS}")
    assert result.broken
    assert [call.complete for call in result.tool_calls] == [True]
    assert result.content == "Text" + shown


def test_a_second_call_that_breaks() -> None:
    second = invoke(X + X)
    result = parse(f"{OPEN}{invoke(N)}{second}{CLOSE}{EOS}")
    assert [call.complete for call in result.tool_calls] == [True, False]
    assert result.content == "\n" + second + CLOSE


def test_a_cut_is_not_broken_and_an_end_is() -> None:
    text = OPEN + f'<{D}invoke name="f">\n{X}'
    for cut in (True, False):
        parser = StreamParser("chat")
        parser.feed(text)
        parser.finish(cut=cut)
        assert parser.broken is not cut


def test_values_that_are_no_text_wait_for_their_end() -> None:
    parser = StreamParser("chat", functions=FUNCTIONS)
    parser.feed(f'{OPEN}<{D}invoke name="f">\n<{D}parameter name="n" string="false">')
    assert parser.feed("12") == []
    assert [delta.text for delta in parser.feed(f"3</{D}parameter>")] == ['{"n": 123']
