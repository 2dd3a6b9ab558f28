"""What becomes of a parameter's value, by the rules of the module; always JSON."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv4.encoding.arguments import DEEPEST, Tools, json_body, json_value
from dsv4.encoding.text_rules import Schemas

INTEGER, STRING, OBJECT = frozenset({"integer"}), frozenset({"string"}), frozenset({"object"})
ARRAY, BOOLEAN = frozenset({"array"}), frozenset({"boolean"})


@pytest.mark.parametrize(
    ("text", "kinds", "wanted"),
    [
        (" 3\n", None, "3"),
        ('{"a":  [1,2]}', OBJECT, '{"a":  [1,2]}'),
        ("12345678901234567890.000", None, "12345678901234567890.000"),
        ("9" * 5000, INTEGER, "9" * 5000),
        ("1e999", None, "1e999"),
        ("hello", None, '"hello"'),
        ("hello", INTEGER, '"hello"'),
        ("True", BOOLEAN, "true"),
        ("None", None, "null"),
        ("{'a': 'it\\'s', \"b\": (1)}", OBJECT, json.dumps("{'a': 'it\\'s', \"b\": (1)}")),
        ("{'a': 'it\\'s', \"b\": False,}", OBJECT, '{"a": "it\'s", "b": false}'),
        ("[1, 2,]", ARRAY, "[1, 2]"),
        ('["a\nb"]', ARRAY, '["a\\nb"]'),
        ("007", INTEGER, "7"),
        ("007", None, '"007"'),
        ("+5", frozenset({"number"}), "5"),
        ("1.", frozenset({"number"}), "1"),
        ("NaN", INTEGER, '"NaN"'),
        ("NaN", frozenset({"number", "null"}), "null"),
        ("[1, NaN, -Infinity]", None, "[1, null, null]"),
        ("", INTEGER, '""'),
        ("", None, '""'),
        ("3", STRING, '"3"'),
        ("1.0", frozenset({"integer", "string"}), "1.0"),
        ("1.5", frozenset({"integer", "string"}), '"1.5"'),
        ("10e-1", frozenset({"integer", "string"}), "10e-1"),
        ('{"a": 1}', STRING, json.dumps('{"a": 1}')),
        ('"x"', STRING, '"x"'),
        ('"3"', INTEGER, "3"),
        ('"{\\"a\\": 1}"', OBJECT, '{"a": 1}'),
        ("3", BOOLEAN, "3"),
        ("[1, 2", ARRAY, '"[1, 2"'),
        ("{1: 2}", OBJECT, '"{1: 2}"'),
        ('"\\ud800 \\\\ud800 \\ud83d\\ude00"', None, '"\\ufffd \\\\ud800 \\ud83d\\ude00"'),
        ("'\\ud83d'", None, '"\ufffd"'),
        ("\ud83d", None, '"?"'),
    ],
)
def test_values(text: str, kinds: frozenset[str] | None, wanted: str) -> None:
    assert json_value(text, kinds) == wanted


@pytest.mark.parametrize("depth", [DEEPEST + 1, 100_000])
def test_what_is_too_deep_is_text(depth: int) -> None:
    text = "[" * depth + "]" * depth
    assert json_value(text) == json.dumps(text)
    text = "['" * depth
    assert json_value(text) == json.dumps(text)


NEARLY = st.text(alphabet="[]{}'\"\\,: 0123456789.+-eENaTrueFls\nu", max_size=30)


@settings(max_examples=500, deadline=None)
@given(text=st.text() | NEARLY, kinds=st.sampled_from([None, INTEGER, STRING, OBJECT, ARRAY]))
def test_always_json(text: str, kinds: frozenset[str] | None) -> None:
    def refuse(name: str) -> None:
        raise ValueError(name)

    value = json_value(text, kinds)
    json.loads(value, parse_constant=refuse)
    value.encode()


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        ({"type": "integer"}, {"integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        (
            {"enum": ["a", 1, None, True, 1.5, [], {}]},
            {"string", "integer", "null", "boolean", "number", "array", "object"},
        ),
        ({"const": 5}, {"integer"}),
        ({"const": 5.0}, {"integer"}),
        ({"enum": [1.0, "auto"]}, {"integer", "string"}),
        ({"$ref": "other.json"}, None),
        ({"$ref": 3}, None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"integer", "null"}),
        ({"anyOf": [{"type": "integer"}, {}]}, None),
        ({"$ref": "#/$defs/a~1b"}, {"boolean"}),
        ({"$ref": "#/$defs/loop"}, None),
        ({"$ref": "#/$defs/none"}, None),
        ({"allOf": [{"$ref": "#/$defs/a~1b"}]}, {"boolean"}),
        ({"type": "odd"}, None),
        ({}, None),
        (True, None),
    ],
)
def test_declared_types(schema: Any, kinds: set[str] | None) -> None:
    definitions = {"a/b": {"type": "boolean"}, "loop": {"$ref": "#/$defs/loop"}}
    tools = Tools([{"name": "f", "parameters": {"properties": {"p": schema}, "$defs": definitions}}])
    assert tools.kinds("f", "p") == kinds
    assert tools.kinds("f", "other") is None


def test_names() -> None:
    tools = Tools([{"name": name} for name in ("get_weather", "Bash", "a.b", "A_B", "ls")])
    written = ["get_weather", "getWeather", "GET-WEATHER", "bash", "functions.ls", "a.b", "A_B", "ab", "rm", "", "."]
    wanted = ["get_weather", "get_weather", "get_weather", "Bash", "ls", "a.b", "A_B", None, None, None, None]
    assert [tools.name(name) for name in written] == wanted


@pytest.mark.parametrize(
    ("value", "inner"),
    [
        ('{"path": "/a"}', '{"path": "/a"}'),
        ('"{\\"path\\": \\"/a\\"}"', '{"path": "/a"}'),
        ('{"path": "/a", "n": 1}', '{"path": "/a", "n": 1}'),
        ('{"n": 1}', None),
        ('{"path": "/a", "other": 1}', None),
        ('"text"', None),
        ("3", None),
    ],
)
def test_wrappers(value: str, inner: str | None) -> None:
    properties = {"path": {"type": "string"}, "n": {}}
    tools = Tools([{"name": "f", "parameters": {"properties": properties, "required": ["path"]}}])
    assert tools.unwrapped("f", value) == inner
    assert tools.wraps("f", "arguments")
    assert not tools.wraps("f", "path")
    assert not Tools([{"name": "f", "parameters": {"properties": {"input": {}}}}]).wraps("f", "input")
    assert not Tools([{"name": "f"}]).wraps("f", "input")


def test_bodies() -> None:
    assert json_body("{'a': 1,}") == '{"a": 1}'
    assert json_body("[1]") is json_body("text") is None


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (True, "boolean"),
        (1, "integer"),
        (1.0, "integer"),
        (-2e3, "integer"),
        (1.5, "number"),
        (1e400, "number"),
        ("1", "string"),
        ([1], "array"),
        ({"a": 1}, "object"),
    ],
)
def test_grammar_and_repair_agree_on_types(value: Any, kind: str) -> None:
    """A value that a schema allows has one type, for the grammar of a strict call and for the repair of any call."""
    schema = {"enum": [value]}
    tools = Tools([{"name": "f", "parameters": {"properties": {"p": schema}}}])
    assert tools.kinds("f", "p") == {kind}
    assert Schemas(schema).other_types(schema) == [kind for kind in (kind,) if kind != "string"]
