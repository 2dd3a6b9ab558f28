"""Calls of the model's own choice: what a schema accepts may be written, in any order; nothing else."""

import time
from pathlib import Path
from typing import Any

import pytest
from following import allows, block, call

from dsv4.encoding import Tokenizer
from dsv4.encoding.any_order_calls import MOST_FUNCTIONS, MOST_OF_ONE, MOST_OF_VALUES, MOST_PARAMETERS, MOST_VALUES
from dsv4.encoding.grammar import Grammar, Grammars

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
TEXT, JSON = "true", "false"
COLOUR = {"$ref": "#/$defs/colour"}
FORM = {
    "name": "form",
    "parameters": {
        "type": "object",
        "properties": {
            "text": {"type": "string", "pattern": "^x"},
            "count": {"type": "integer", "minimum": 100},
            "size": {"type": "number"},
            "flag": {"type": "boolean"},
            "colour": {"anyOf": [COLOUR, {"type": "null"}]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "colours": {"type": "array", "items": COLOUR},
            "place": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}},
            "whatever": {},
            "maybe": {"type": ["integer", "null"]},
        },
        "required": ["count", "text"],
        "$defs": {"colour": {"type": "string", "enum": ["red", "blue", "blueish"]}},
    },
}
NOW = {"name": "now", "parameters": {"type": "object", "properties": {}}}
FREE = {"name": "free"}
NONE = {"name": "none", "parameters": {}}
OPEN = {
    "name": "open",
    "parameters": {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "integer"}},
}
FUNCTIONS = [FORM, NOW, FREE, NONE, OPEN]
N, T = ("count", JSON, "-3"), ("text", TEXT, "one <b>\ntwo</b> naïve 日本")


@pytest.fixture(scope="module")
def nano() -> Tokenizer:
    return Tokenizer.load(NANO)


@pytest.fixture(scope="module")
def guard(nano: Tokenizer) -> Grammar:
    return Grammars(nano).calls_in_any_order(FUNCTIONS)


def permits(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the text can be written in just the tokens that its prompt would have, and then end."""
    ids = tokenizer.encode_text(text, trusted=True)
    state = grammar.start()
    for token in [*ids[ids.index(tokenizer.token_id(tokenizer.dialect.dsml)) + 1 :], tokenizer.eos_id]:
        if not allows(state.allowed(), token):
            return False
        state.accept(token)
    return True


def form(*parameters: tuple[str, str, str]) -> tuple[Any, ...]:
    return ("form", *parameters, N, T)


RIGHT = [
    ("form", N, T),
    ("form", T, N),
    form(("size", JSON, "-1.5e3"), ("flag", JSON, "true")),
    ("form", ("maybe", JSON, "null"), T, N),
    form(("colour", TEXT, "blueish")),
    form(("colour", TEXT, "blue")),
    form(("colour", JSON, "null")),
    form(("tags", JSON, '["a", "\\u00e9"]')),
    form(("tags", JSON, "[]")),
    form(("colours", JSON, '["red"]')),
    form(("place", JSON, '{"y": 1, "x": 2, "z": [null]}')),
    form(("whatever", JSON, "[1, {}]")),
    form(("whatever", TEXT, "[1")),
    ("now",),
    ("none",),
    ("free",),
    ("free", ("anything", TEXT, ""), ("more", JSON, "[1]")),
    ("open",),
    ("open", ("a", TEXT, "x"), ("aa", JSON, "1"), ("b", JSON, "2")),
]
WRONG = [
    ("other",),
    ("no",),
    ("nowhere",),
    ("form", T),
    ("form",),
    ("form", N, T, N),
    form(("unknown", TEXT, "x")),
    ("form", ("count", JSON, "three"), T),
    ("form", ("count", TEXT, "3"), T),
    ("form", ("count", JSON, "1.5"), T),
    ("form", ("count", JSON, "03"), T),
    ("form", N, ("text", JSON, '"x"')),
    form(("flag", JSON, "yes")),
    form(("flag", JSON, "True")),
    form(("colour", TEXT, "green")),
    form(("colour", TEXT, "blu")),
    form(("tags", JSON, "[1]")),
    form(("tags", JSON, '["a"')),
    form(("colours", JSON, '["green"]')),
    form(("place", JSON, "[1]")),
    form(("maybe", TEXT, "null")),
    ("now", N),
    ("none", N),
    ("open", ("b", TEXT, "x")),
    ("open", ("a", TEXT, "x"), ("a", TEXT, "x")),
]


@pytest.mark.parametrize(("made", "right"), [(c, True) for c in RIGHT] + [(c, False) for c in WRONG])
def test_one_call(guard: Grammar, nano: Tokenizer, made: Any, right: bool) -> None:
    assert permits(guard, nano, block(nano, call(nano, *made))) is right


def test_the_released_vocabulary_writes_calls_as_its_prompts_have_them(released: Tokenizer) -> None:
    """A model has learnt these tokens; the grammar must not make it cut its text in another way."""
    guard = Grammars(released).calls_in_any_order(FUNCTIONS)
    for made in RIGHT:
        assert permits(guard, released, block(released, call(released, *made))), made
    every = block(released, *(call(released, *made) for made in RIGHT))
    assert permits(guard, released, every)


def test_the_frame_of_a_block(guard: Grammar, nano: Tokenizer) -> None:
    now, dsml = call(nano, "now"), nano.dialect.dsml
    assert permits(guard, nano, block(nano, now, now))
    # without parameters the release writes an empty line, and its service none
    assert permits(guard, nano, block(nano, now.replace("\n\n", "\n")))
    for wrong in (
        block(nano),
        block(nano, now) + " and more",
        block(nano, now).removesuffix(">"),
        block(nano, now + " then"),
        f"\n\n<{dsml}tool_calls>\nI look.\n{now}\n</{dsml}tool_calls>",
        f'\n\n<{dsml}invoke name="now">\n\n</{dsml}invoke>',
    ):
        assert not permits(guard, nano, wrong)


def test_one_call_when_parallel_calls_are_off(nano: Tokenizer) -> None:
    now, guard = call(nano, "now"), Grammars(nano).calls_in_any_order(FUNCTIONS, parallel=False)
    assert permits(guard, nano, block(nano, now))
    assert not permits(guard, nano, block(nano, now, now))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "anyOf": [{"required": ["x"]}], "properties": {"x": {}}},
        {"$ref": "#"},
        {"$ref": "https://example.org/x"},
        {"type": "array"},
        {"properties": [1]},
        {"required": "x"},
        {"properties": {"x": {"type": "string", "enum": [1]}}},
        {"properties": {f"p{i}": {} for i in range(MOST_OF_ONE + 1)}},
        [1],
        None,
    ],
)
def test_what_cannot_be_listed_has_its_name(nano: Tokenizer, schema: Any) -> None:
    guard = Grammars(nano).calls_in_any_order([{"name": "odd", "parameters": schema}, NOW])
    assert permits(guard, nano, block(nano, call(nano, "odd", ("x", TEXT, "1"), ("y", JSON, "2"))))
    assert permits(guard, nano, block(nano, call(nano, "now")))
    assert not permits(guard, nano, block(nano, call(nano, "now", ("x", TEXT, "1"))))
    assert not permits(guard, nano, block(nano, call(nano, "even")))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objekt"},
        {"$ref": "#/$defs/none"},
        {"anyOf": [{"$ref": "#/$defs/loop"}, {"type": "string"}]},
        {"enum": [[1], {"a": 1}, "x", 2]},
        {"enum": [*range(MOST_VALUES + 1), "x"]},
        {"enum": ["y" * MOST_OF_VALUES, "x", 2]},
        {"not": {"type": "string"}},
        False,
    ],
)
def test_a_parameter_of_unknown_form_takes_any(nano: Tokenizer, schema: Any) -> None:
    parameters = {"properties": {"x": schema}, "required": ["x"], "$defs": {"loop": {"$ref": "#/$defs/loop"}}}
    guard = Grammars(nano).calls_in_any_order([{"name": "f", "parameters": parameters}])
    assert permits(guard, nano, block(nano, call(nano, "f", ("x", TEXT, "x"))))
    assert permits(guard, nano, block(nano, call(nano, "f", ("x", JSON, "2"))))
    assert not permits(guard, nano, block(nano, call(nano, "f", ("y", JSON, "2"))))
    assert not permits(guard, nano, block(nano, call(nano, "f")))


@pytest.mark.parametrize("ways", [2, 16])
def test_references_that_multiply_take_no_time(nano: Tokenizer, ways: int) -> None:
    """Each of a thousand million ways through this schema ends at the same text."""
    levels = {f"l{i}": {"anyOf": [{"$ref": f"#/$defs/l{i + 1}"}] * ways} for i in range(7)}
    parameters = {"properties": {"x": {"$ref": "#/$defs/l0"}}, "$defs": {**levels, "l7": {"enum": ["a"]}}}
    began = time.process_time()
    guard = Grammars(nano).calls_in_any_order([{"name": "f", "parameters": parameters}])
    assert time.process_time() - began < 60
    assert permits(guard, nano, block(nano, call(nano, "f", ("x", TEXT, "a"))))


def test_items_behind_others_are_left_to_the_client(nano: Tokenizer) -> None:
    pair = {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}}
    guard = Grammars(nano).calls_in_any_order([{"name": "f", "parameters": {"properties": {"x": pair}}}])
    assert permits(guard, nano, block(nano, call(nano, "f", ("x", JSON, '["a", 1]'))))
    assert not permits(guard, nano, block(nano, call(nano, "f", ("x", JSON, '{"a": 1}'))))


def test_a_required_parameter_without_a_schema(nano: Tokenizer) -> None:
    guard = Grammars(nano).calls_in_any_order([{"name": "f", "parameters": {"properties": {}, "required": ["x"]}}])
    assert permits(guard, nano, block(nano, call(nano, "f", ("x", TEXT, "x"))))
    assert not permits(guard, nano, block(nano, call(nano, "f")))


def test_whole_numbers_with_a_fraction_have_two_forms(nano: Tokenizer) -> None:
    parameters = {"properties": {"x": {"enum": [1.0, 2]}}}
    guard = Grammars(nano).calls_in_any_order([{"name": "f", "parameters": parameters}])
    for text, right in (("1", True), ("1.0", True), ("2", True), ("3", False)):
        assert permits(guard, nano, block(nano, call(nano, "f", ("x", JSON, text)))) is right


@pytest.mark.parametrize(("count", "each"), [(4096, 1), (MOST_FUNCTIONS + 2, 1), (100, MOST_PARAMETERS // 50)])
def test_of_many_functions_the_first_have_their_parameters(nano: Tokenizer, count: int, each: int) -> None:
    def function(index: int) -> dict[str, Any]:
        properties = {f"p{i}": {"type": "integer"} for i in range(each)}
        return {"name": f"f{index}", "parameters": {"properties": properties}}

    guard = Grammars(nano).calls_in_any_order([*map(function, range(count))])
    known, unknown = ("p0", JSON, "1"), ("q", TEXT, "x")
    for index, wants in ((0, False), (count - 1, True)):
        assert permits(guard, nano, block(nano, call(nano, f"f{index}", known)))
        assert permits(guard, nano, block(nano, call(nano, f"f{index}", unknown))) is wants
    assert not permits(guard, nano, block(nano, call(nano, f"f{count}", known)))


def test_what_the_engine_refuses_has_its_name(nano: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(nano)
    real = grammars._compiled

    def picky(source: str) -> Any:
        if "call_0" in source:
            raise RuntimeError("it gave up")
        return real(source)

    monkeypatch.setattr(grammars, "_compiled", picky)
    guard = grammars.calls_in_any_order([FORM])
    assert permits(guard, nano, block(nano, call(nano, "form", ("anything", TEXT, "x"))))
    assert not permits(guard, nano, block(nano, call(nano, "other")))


def test_equal_tools_are_compiled_once(nano: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(nano)
    compiled: list[str] = []
    real = grammars._compiled
    monkeypatch.setattr(grammars, "_compiled", lambda source: compiled.append(source) or real(source))
    for description in ("one", "two"):
        grammars.calls_in_any_order([{**FORM, "description": description}, NOW])
    assert len(compiled) == 1
