"""Grammars: what they let through, what they stop, what they refuse by name."""

from pathlib import Path
from typing import Any

import pytest

from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import Grammar, GrammarError, Grammars

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["c", "f"]},
            "where": {"$ref": "#/$defs/point"},
            "note": {"type": ["string", "null"]},
        },
        "required": ["city"],
        "$defs": {"point": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}},
    },
}
NOW = {"name": "now", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(NANO)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


def follows(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the text can be written, and then end. Forced text must come in the tokens the vocabulary would cut it
    into by itself, so where the usual token is not allowed, a shorter one that begins the rest will do."""
    state = grammar.start()
    while text:
        mask = state.allowed()
        usual = tokenizer.encode_text(text, trusted=True)[0]
        token = usual if allows(mask, usual) else shorter(tokenizer, mask, text)
        if token is None:
            return False
        state.accept(token)
        text = text[len(tokenizer.decode([token])) :]
    return allows(state.allowed(), tokenizer.eos_id)


def allows(mask: bytes | None, token: int) -> bool:
    return mask is None or bool((mask[token // 8] >> (token % 8)) & 1)


def shorter(tokenizer: Tokenizer, mask: bytes | None, text: str) -> int | None:
    plain = tokenizer.encode_text(text.split("｜")[0])
    pieces = [tokenizer.encode_text(text[:n]) for n in range(len(tokenizer.decode(plain[:1])), 0, -1)]
    return next((ids[0] for ids in pieces if len(ids) == 1 and allows(mask, ids[0])), None)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a": 3, "b": "x"}', True),
        ('{"a":3,"b":"\\u00e9"}', True),
        ('{"a": "3", "b": "x"}', False),
        ('{"a": 3}', False),
        ('{"a": 3, "b": "x", "c": 1}', False),
        ('{"a": 3, "b": "x"} and more', False),
    ],
)
def test_json_schema(grammars: Grammars, tokenizer: Tokenizer, text: str, fits: bool) -> None:
    assert follows(grammars.json_schema(SCHEMA), tokenizer, text) is fits


@pytest.mark.parametrize(("text", "fits"), [("{}", True), ('{"x": [1, null]}', True), ("[1]", False), ("3", False)])
def test_json_object(grammars: Grammars, tokenizer: Tokenizer, text: str, fits: bool) -> None:
    assert follows(grammars.json_object(), tokenizer, text) is fits


@pytest.mark.parametrize(("text", "fits"), [("abca", True), ("", False), ("abd", False)])
def test_regex(grammars: Grammars, tokenizer: Tokenizer, text: str, fits: bool) -> None:
    assert follows(grammars.regex("[a-c]+"), tokenizer, text) is fits


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {}}, "not"),
        ({"if": {"type": "string"}, "then": {}}, "if"),
        ({"type": "objekt"}, "objekt"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(grammars: Grammars, schema: dict[str, Any], name: str) -> None:
    with pytest.raises(GrammarError, match=name):
        grammars.json_schema(schema)
    with pytest.raises(GrammarError, match=name):
        grammars.tool_calls([{"name": "f", "parameters": {"properties": {"p": schema}}}])


def call(tokenizer: Tokenizer, name: str, *parameters: tuple[str, str, str]) -> str:
    dsml = tokenizer.dialect.dsml
    rows = [f'<{dsml}parameter name="{k}" string="{raw}">{value}</{dsml}parameter>' for k, raw, value in parameters]
    return f'<{dsml}invoke name="{name}">\n' + "\n".join(rows) + f"\n</{dsml}invoke>"


def block(tokenizer: Tokenizer, *calls: str) -> str:
    dsml = tokenizer.dialect.dsml
    return f"\n\n<{dsml}tool_calls>\n" + "\n".join(calls) + f"\n</{dsml}tool_calls>"


GOOD = [
    [("weather", ("city", "true", "Rome"))],
    [("weather", ("city", "true", "a </b> in\ntwo lines"), ("days", "false", "3"))],
    [("weather", ("city", "true", "Rome"), ("unit", "true", "c"), ("where", "false", "[1.5, 2]"))],
    [("weather", ("city", "true", ""), ("note", "false", "null"))],
    [("weather", ("city", "true", "Rome"), ("note", "true", "dry"))],
    [("now",), ("weather", ("city", "true", "Rome")), ("now",)],
]
BAD = [
    [],
    [("other",)],
    [("weather", ("days", "false", "3"))],
    [("weather", ("city", "true", "Rome"), ("days", "false", "three"))],
    [("weather", ("city", "true", "Rome"), ("unit", "true", "k"))],
    [("weather", ("city", "true", "Rome"), ("city", "true", "Rome"))],
    [("weather", ("city", "true", "Rome"), ("where", "false", "[1]"))],
    [("weather", ("city", "false", '"Rome"'))],
]


@pytest.mark.parametrize(("calls", "fits"), [(c, True) for c in GOOD] + [(c, False) for c in BAD])
def test_tool_calls(grammars: Grammars, tokenizer: Tokenizer, calls: list[Any], fits: bool) -> None:
    text = block(tokenizer, *(call(tokenizer, *c) for c in calls))
    assert follows(grammars.tool_calls([WEATHER, NOW]), tokenizer, text) is fits


def test_one_call_when_parallel_calls_are_off(grammars: Grammars, tokenizer: Tokenizer) -> None:
    one, grammar = call(tokenizer, "now"), grammars.tool_calls([NOW], parallel=False)
    assert follows(grammar, tokenizer, block(tokenizer, one))
    assert not follows(grammar, tokenizer, block(tokenizer, one, one))


def test_a_function_without_a_schema_takes_any_parameters(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = grammars.tool_calls([{"name": "free"}])
    assert follows(grammar, tokenizer, block(tokenizer, call(tokenizer, "free")))
    both = call(tokenizer, "free", ("x", "true", "y"), ("n", "false", "[1]"))
    assert follows(grammar, tokenizer, block(tokenizer, both))


def test_a_grammar_may_begin_after_the_thought(grammars: Grammars, tokenizer: Tokenizer) -> None:
    close = tokenizer.token_id(tokenizer.dialect.think_close)
    grammar = grammars.json_object().after(close)
    assert follows(grammar, tokenizer, f'free text {{ {tokenizer.dialect.think_close}{{"a": 1}}')
    assert not follows(grammar, tokenizer, f"free text {tokenizer.dialect.think_close}more")


def test_a_block_the_model_opens_itself(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Free text; from the first control token on, the grammar."""
    grammar = grammars.tool_calls([NOW], opened=True).after(tokenizer.token_id(tokenizer.dialect.dsml))
    assert follows(grammar, tokenizer, "I look." + block(tokenizer, call(tokenizer, "now")))
    assert not follows(grammar, tokenizer, "I look." + block(tokenizer, call(tokenizer, "then")))


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([], "tools: at least one is needed"),
        ([{"name": ""}], r"tools\[0\].function.name must be a non-empty string, got ''"),
        ([{"name": "f", "parameters": [1]}], r"tools\[0\].function.parameters must be a JSON schema object"),
        ([{"name": "f", "parameters": {"required": ["x"]}}], r"tools\[0\]: required names 'x', which is not in"),
    ],
)
def test_impossible_tools_are_refused(grammars: Grammars, functions: list[Any], message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        grammars.tool_calls(functions)
