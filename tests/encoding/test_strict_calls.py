"""Strict tools: every keyword of a parameter's schema holds in the form its value has, or is refused by name."""

from typing import Any

import pytest
from following import block, call, follows

from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import GrammarError, Grammars
from tests.conftest import ROOT

DEFINITIONS = {
    "P": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    "E": {"type": "string", "enum": ["red", "blue"]},
    "Tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree"}}, "additionalProperties": False},
}
INT_OR_NULL = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
TEXT, JSON = "true", "false"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(ROOT / "models" / "nano")


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


def accepts(grammars: Grammars, tokenizer: Tokenizer, parameters: Any, *written: tuple[str, str, str]) -> bool:
    """Whether a call with these parameters (name, value, `string`) may be written."""
    grammar = grammars.tool_calls([{"name": "f", "parameters": parameters}])
    rows = [(name, kind, value) for name, value, kind in written]
    return follows(grammar, tokenizer, block(tokenizer, call(tokenizer, "f", *rows)))


def one(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": DEFINITIONS}


# schema, then values that fit and values that do not, each in the form it is written in
CASES: list[tuple[Any, list[tuple[str, str]], list[tuple[str, str]]]] = [
    (INT_OR_NULL, [("3", JSON), ("null", JSON)], [("three", TEXT), ("3", TEXT), ('"3"', JSON), ("true", JSON)]),
    ({"$ref": "#/$defs/P"}, [('{"a": 1}', JSON)], [("text", TEXT), ("{}", JSON), ('{"a": 1, "b": 2}', JSON)]),
    ({"$ref": "#/$defs/E"}, [("red", TEXT)], [("mauve", TEXT), ("redd", TEXT), ('"red"', JSON)]),
    ({"anyOf": [{"enum": ["a"]}, {"type": "null"}]}, [("a", TEXT), ("null", JSON)], [("zzz", TEXT), ("1", JSON)]),
    ({"anyOf": [{"$ref": "#/$defs/E"}, {"type": "integer"}]}, [("blue", TEXT), ("4", JSON)], [("4", TEXT)]),
    ({"oneOf": [{"type": "integer"}, {"type": "boolean"}]}, [("1", JSON), ("true", JSON)], [("zzz", TEXT)]),
    ({"oneOf": [{"const": "a"}, {"const": "b"}]}, [("a", TEXT), ("b", TEXT)], [("c", TEXT), ("1", JSON)]),
    ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, [("7", JSON)], [("zzz", TEXT), ("3", JSON)]),
    (
        {"allOf": [{"type": "string"}, {"maxLength": 3}, {"pattern": "^a"}]},
        [("ab", TEXT)],
        [("abcd", TEXT), ("b", TEXT)],
    ),
    ({"const": 5}, [("5", JSON)], [("5", TEXT), ("6", JSON)]),
    ({"const": "a b"}, [("a b", TEXT)], [("a", TEXT), ('"a b"', JSON)]),
    ({"enum": ["a", 1, None]}, [("a", TEXT), ("1", JSON), ("null", JSON)], [("1", TEXT), ("b", TEXT), ("2", JSON)]),
    ({"type": "string", "pattern": "^[0-9]{4}$"}, [("1234", TEXT)], [("hello", TEXT), ("12345", TEXT)]),
    ({"type": "string", "pattern": "b+"}, [("abba", TEXT)], [("aa", TEXT)]),
    ({"type": "string", "pattern": "^a|b$"}, [("ax", TEXT), ("xb", TEXT)], [("xax", TEXT)]),
    ({"type": "string", "pattern": r"^[^/$|]+\$/\d$"}, [("a$/1", TEXT)], [("a/1", TEXT)]),
    ({"type": "string", "minLength": 3}, [("abc", TEXT), ("日本語", TEXT)], [("h", TEXT), ("日本", TEXT)]),
    ({"type": "string", "maxLength": 3}, [("", TEXT), ("日本語", TEXT), ("</", TEXT)], [("four", TEXT)]),
    ({"type": "string", "maxLength": 0}, [("", TEXT)], [("a", TEXT)]),
    ({"minLength": 2}, [("ab", TEXT), ("1", JSON), ("[]", JSON)], [("a", TEXT)]),
    ({"type": ["string", "null"], "enum": ["a", None]}, [("a", TEXT), ("null", JSON)], [("b", TEXT)]),
    ({"type": "integer", "minimum": 1, "maximum": 9}, [("9", JSON)], [("10", JSON), ("0", JSON)]),
    ({"type": "array", "items": {"type": "string", "maxLength": 1}}, [('["a"]', JSON)], [('["ab"]', JSON)]),
    ({"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/P"}}, [('[{"a": 1}]', JSON)], [("[]", JSON)]),
    ({"$ref": "#/$defs/Tree"}, [('{"left": {"left": {}}}', JSON)], [('{"right": {}}', JSON)]),
    ({}, [("any", TEXT), ("1", JSON)], []),
    (True, [("any", TEXT), ("[1]", JSON)], []),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), CASES, ids=[str(case[0])[:60] for case in CASES])
def test_keywords(grammars: Grammars, tokenizer: Tokenizer, schema: Any, right: Any, wrong: Any) -> None:
    for value, kind in right:
        assert accepts(grammars, tokenizer, one(schema), ("x", value, kind)), (value, kind)
    for value, kind in wrong:
        assert not accepts(grammars, tokenizer, one(schema), ("x", value, kind)), (value, kind)


FORMATS = {
    "ipv4": (["1.2.3.4", "255.0.10.99"], ["hello", "256.1.1.1", "01.2.3.4"]),
    "ipv6": (["::1", "fe80::1:2", "1:2:3:4:5:6:7:8", "::ffff:1.2.3.4", "1::"], ["1:2", "12345::", ":::"]),
    "uuid": (["00000000-0000-4000-8000-00000000000f"], ["0000", "g0000000-0000-4000-8000-000000000000"]),
    "date": (["2024-02-29", "2023-12-31"], ["2023-02-29", "2023-13-01", "2023-04-31", "23-01-01"]),
    "time": (["12:30:00Z", "12:30:00.5+02:00"], ["25:00:00Z", "12:30"]),
    "date-time": (["2024-02-29T12:30:00Z"], ["2024-02-29", "2024-02-29 12:30:00Z"]),
    "duration": (["P1Y2M3D", "PT1H", "P2W", "P1DT12H30M"], ["1Y", "P", "PT", "P1H"]),
    "hostname": (["example.org", "a"], ["-a", "a..b", "a_b"]),
    "email": (["a.b+c@example.org"], ["a", "@example.org", "a@"]),
    "uri": (["https://example.org/a?b=c#d", "mailto:a@b"], ["no uri", "/relative", "http://a b"]),
}


@pytest.mark.parametrize(("name", "right", "wrong"), [(name, *values) for name, values in FORMATS.items()])
def test_formats(grammars: Grammars, tokenizer: Tokenizer, name: str, right: list[str], wrong: list[str]) -> None:
    schema = one({"type": "string", "format": name})
    assert all(accepts(grammars, tokenizer, schema, ("x", value, TEXT)) for value in right)
    assert not any(accepts(grammars, tokenizer, schema, ("x", value, TEXT)) for value in wrong)


@pytest.mark.parametrize(
    ("parameters", "some", "none"),
    [
        ({"type": "object", "properties": {}, "additionalProperties": False}, False, True),
        ({"type": "object", "properties": {}}, False, True),
        ({"type": "object", "additionalProperties": False}, False, True),
        ({"type": "object"}, True, True),
        (None, True, True),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, True, True),
        ({"type": "object", "additionalProperties": {"type": "string"}}, False, True),
        ({"$ref": "#/$defs/top", "$defs": {"top": {"type": "object", "properties": {"z": {}}}}}, True, True),
    ],
)
def test_other_parameters(grammars: Grammars, tokenizer: Tokenizer, parameters: Any, some: bool, none: bool) -> None:
    assert accepts(grammars, tokenizer, parameters, ("z", "1", JSON)) is some
    assert accepts(grammars, tokenizer, parameters) is none


def test_a_reference_to_the_whole(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """As zod writes recursive types."""
    child = {"type": "array", "items": {"$ref": "#"}}
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}, "c": child}, "additionalProperties": False}
    assert accepts(grammars, tokenizer, parameters, ("c", '[{"n": 1, "c": [{"n": 2}]}]', JSON))
    assert not accepts(grammars, tokenizer, parameters, ("c", '[{"m": 1}]', JSON))
    again = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}}}
    assert accepts(grammars, tokenizer, again, ("b", "1", JSON))
    assert not accepts(grammars, tokenizer, again, ("b", "x", TEXT))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "not": {"const": "a"}}, r"properties\.x\.not"),
        ({"type": "string", "format": "odd"}, r"properties\.x\.format: 'odd'"),
        ({"type": "string", "pattern": "a^b"}, "pattern"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern"),
        ({"type": "string", "pattern": 3}, "pattern"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength: larger"),
        ({"type": "objekt"}, "objekt"),
        ({"type": []}, "type"),
        ({"$ref": "#/$defs/none"}, "#/\\$defs/none"),
        ({"$ref": "https://example.org/x"}, "only references into the schema"),
        ({"$ref": "#/$defs/loop"}, "itself without end"),
        ({"anyOf": []}, "anyOf"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf"),
        ({"type": "string", "const": 1}, "no value is allowed"),
        (False, "no value is allowed"),
        (None, "expected a schema, got None"),
        ([{"type": "string"}], "expected a schema"),
        ({"anyOf": [None, {"type": "string"}]}, "expected a schema, got None"),
        ({"type": "string", "format": {}}, r"properties\.x\.format"),
        ({"type": "object", "properties": {"y": {"$ref": "#/$defs/none"}}}, "#/\\$defs/none"),
        ({"type": "array", "uniqueItems": True}, r"properties\.x: .*uniqueItems"),
        ({"type": "object", "properties": {"y": {"not": {}}}}, r"properties\.x: .*not"),
        ({"allOf": [{"anyOf": [{"const": f"{i}{j}"} for j in range(9)]} for i in range(9)]}, "combinations"),
    ],
)
def test_what_cannot_be_enforced(grammars: Grammars, schema: Any, message: str) -> None:
    parameters = {**one(schema), "$defs": {"loop": {"anyOf": [{"$ref": "#/$defs/loop"}]}}}
    with pytest.raises(GrammarError, match=message):
        grammars.tool_calls([{"name": "f", "parameters": parameters}])


@pytest.mark.parametrize("keyword", ["anyOf", "allOf", "patternProperties", "minProperties", "if"])
def test_what_the_whole_may_not_say(grammars: Grammars, keyword: str) -> None:
    with pytest.raises(GrammarError, match=rf"tools\[0\]\.function\.parameters\.{keyword}"):
        grammars.tool_calls([{"name": "f", "parameters": {"type": "object", keyword: {}}}])


def test_definitions_that_are_none(grammars: Grammars) -> None:
    refers = {"type": "object", "properties": {"y": {"$ref": "#/$defs/a"}}}
    for definitions in ([refers], "a", None, 3):
        with pytest.raises(GrammarError, match=r"there is no '#/\$defs/a'"):
            grammars.tool_calls([{"name": "f", "parameters": {**one(refers), "$defs": definitions}}])
    assert grammars.tool_calls([{"name": "f", "parameters": {"$ref": "#/$defs/a", "$defs": {"a": [1]}}}])
