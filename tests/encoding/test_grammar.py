"""Grammars: what they let through, what they stop, what they refuse by name."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from following import block, call, follows

from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import GrammarError, Grammars
from dsv4.encoding.verdicts import Verdicts

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


VALUE = {"a": {"b": [3, {"c": "x y"}]}, "d": []}
NESTED = {
    "type": "object",
    "properties": {"a": {"type": "object"}, "d": {"type": "array"}},
    "required": ["a", "d"],
    "additionalProperties": False,
}
STYLES = {
    "compact": json.dumps(VALUE, separators=(",", ":")),
    "usual": json.dumps(VALUE),
    "two": json.dumps(VALUE, indent=2),
    "four": json.dumps(VALUE, indent=4),
    "tabs": json.dumps(VALUE, indent="\t"),
    "lines": json.dumps(VALUE, indent=0),
    "carriage": json.dumps(VALUE, indent=2).replace("\n", "\r\n"),
    "aired": '{ "a" : { "b" : [ 3 , { "c" : "x y" } ] } , "d" : [ ] }',
}
FILLED = {
    "blanks": json.dumps(VALUE).replace(": ", ":  "),
    "empty line": json.dumps(VALUE, indent=2).replace("\n", "\n\n"),
    "blank before a line": json.dumps(VALUE, indent=2).replace("\n", " \n"),
    "far": json.dumps(VALUE, indent=25),
    "mixed": json.dumps(VALUE, indent=2).replace("\n  ", "\n \t"),
    "tab": json.dumps(VALUE).replace(": ", ":\t"),
}


@pytest.mark.parametrize(
    ("text", "fits"),
    [(text, True) for text in STYLES.values()] + [(text, False) for text in FILLED.values()],
    ids=[*STYLES, *FILLED],
)
def test_white_space_is_that_of_a_style_of_json(
    grammars: Grammars, tokenizer: Tokenizer, text: str, fits: bool
) -> None:
    """And nothing more: a small model would fill the answer with it."""
    assert follows(grammars.json_schema(NESTED), tokenizer, text) is fits
    function = {"name": "f", "parameters": {"properties": {"v": NESTED}, "required": ["v"]}}
    written = block(tokenizer, call(tokenizer, "f", ("v", "false", text)))
    dsml = tokenizer.token_id(tokenizer.dialect.dsml)
    assert follows(grammars.tool_calls([function]), tokenizer, written) is fits
    assert follows(grammars.calls_in_any_order([function]).after(dsml), tokenizer, written) is fits
    either = grammars.json_schema_or_calls(NESTED, [function])
    assert [follows(either, tokenizer, answer) for answer in (text, written)] == [fits, fits]


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


def test_a_function_with_an_empty_schema_takes_no_parameters(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = grammars.tool_calls([{"name": "none", "parameters": {}}])
    assert follows(grammar, tokenizer, block(tokenizer, call(tokenizer, "none")))
    assert not follows(grammar, tokenizer, block(tokenizer, call(tokenizer, "none", ("x", "true", "y"))))


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


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def many(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(count)}}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "#"}, "no answer can follow"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no answer"),
        ({"type": "string", "pattern": "^(a?){500}a{500}$"}, "too complex"),
        ({"anyOf": [{"const": i} for i in range(2100)]}, "anyOf: 2,100"),
        (many(1001), "properties: 1,001"),
        ({"enum": [10**400]}, "300 digits"),
        (deep(200), "nested deeper"),
        (deep(5000), "nested too deep"),
        ({"enum": list(range(30_000))}, "20,000 values"),
        ({"anyOf": [{"type": "string", "pattern": f"a{i}"} for i in range(101)]}, "pattern: 101"),
    ],
    ids=range(10),
)
def test_hostile_schemas_are_refused(grammars: Grammars, schema: dict[str, Any], message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        grammars.json_schema(schema)
    parameters = {"properties": {"x": schema}, "$defs": schema.get("$defs", {})}
    if schema == {"$ref": "#"}:
        parameters = schema
    with pytest.raises(GrammarError, match=r"pattern|tools|nested"):
        grammars.tool_calls([{"name": "f", "parameters": parameters}])


def test_many_parameters(grammars: Grammars) -> None:
    function = {"name": "f", "parameters": many(1000)}
    assert grammars.tool_calls([function]).start().allowed()
    with pytest.raises(GrammarError, match="at most 4,000 parameters"):
        grammars.tool_calls([{**function, "name": f"f{i}"} for i in range(5)])


def test_equal_grammars_are_compiled_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(tokenizer)
    compiled: list[str] = []
    monkeypatch.setattr(
        grammars, "_compiled", lambda source, real=grammars._compiled: compiled.append(source) or real(source)
    )
    for _ in range(3):
        grammar = grammars.tool_calls([WEATHER, NOW])
        states = [grammar.start(), grammar.start()]
        assert states[0].allowed() == states[1].allowed()
        grammars.json_schema(SCHEMA)
    assert len(compiled) == 2
    for i in range(200):
        grammars.json_schema({"const": i})
    assert len(grammars._kept) <= 64


BOMB = {"type": "string", "pattern": "^(a?){500}a{500}$"}
UNIQUE = {"type": "array", "uniqueItems": True}
ODD = {"name": "odd", "parameters": {"properties": {"a": {"type": "string"}, "b": UNIQUE}}}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that are compiled from here on."""
    sources: list[str] = []
    real = Grammars._compiled
    monkeypatch.setattr(
        Grammars, "_compiled", lambda grammars, source: sources.append(source) or real(grammars, source)
    )
    return sources


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda grammars: grammars.json_schema({"type": "objekt"}), "objekt"),
        (lambda grammars: grammars.json_schema(BOMB), "pattern"),
        (lambda grammars: grammars.regex("("), "regex"),
        (lambda grammars: grammars.tool_calls([NOW, ODD]), r"tools\[1\].*properties.b.*uniqueItems"),
        (lambda grammars: grammars.json_schema_or_calls(SCHEMA, [NOW, ODD]), r"tools\[1\].*properties.b.*uniqueItems"),
        (lambda grammars: grammars.json_schema_or_calls({"type": "objekt"}, [NOW]), "objekt"),
    ],
    ids=range(6),
)
def test_what_is_refused_is_compiled_once(tokenizer: Tokenizer, compiled: list[str], ask: Any, error: str) -> None:
    grammars = Grammars(tokenizer)
    with pytest.raises(GrammarError, match=error) as first:
        ask(grammars)
    assert compiled
    grammars.json_schema(SCHEMA)  # others go on meanwhile
    count, kept = len(compiled), [*grammars._kept]
    for _ in range(3):
        with pytest.raises(GrammarError) as again:
            ask(grammars)
        assert (type(again.value), str(again.value)) == (type(first.value), str(first.value))
    assert (len(compiled), sorted(grammars._kept)) == (count, sorted(kept))
    # another tokenizer may have another verdict
    with pytest.raises(GrammarError):
        ask(Grammars(tokenizer))
    assert len(compiled) > count


@pytest.mark.parametrize(
    ("ask", "refused", "sources"),
    [
        (lambda grammars: grammars.json_schema(SCHEMA), None, 1),
        (lambda grammars: grammars.tool_calls([WEATHER]), None, 1),
        (lambda grammars: grammars.json_schema({"type": "string", "pattern": "a+b"}), None, 3),
        (lambda grammars: grammars.json_schema({"type": "objekt"}), "objekt", 1),
        (lambda grammars: grammars.json_schema(BOMB), "pattern", 1),
    ],
    ids=range(5),
)
def test_askers_at_the_same_moment_share_one_compile(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, ask: Any, refused: str | None, sources: int
) -> None:
    """sources: of the grammar and of its patterns."""
    grammars, together, lock = Grammars(tokenizer), 6, threading.Lock()
    grammars.prepare()
    waiting, all_wait, compiled = [0], threading.Event(), list[str]()
    real = Grammars._compiled

    def compile_when_all_wait(self: Grammars, source: str) -> Any:
        compiled.append(source)
        assert all_wait.wait(60)
        return real(self, source)

    def joined(self: Verdicts, digest: bytes, real: Any = Verdicts._joined) -> Any:
        making, mine = real(self, digest)
        with lock:
            waiting[0] += not mine
            if waiting[0] == together - 1:
                all_wait.set()
        return making, mine

    monkeypatch.setattr(Grammars, "_compiled", compile_when_all_wait)
    monkeypatch.setattr(Verdicts, "_joined", joined)
    with ThreadPoolExecutor(together) as threads:
        found = [threads.submit(ask, grammars) for _ in range(together)]
        errors = [each.exception() for each in found]
    assert len(compiled) == sources
    if refused is None:
        assert errors == [None] * together
        assert len({id(each.result()._matcher) for each in found}) == 1
    else:
        assert all(isinstance(error, GrammarError) for error in errors)
        assert len({str(error) for error in errors}) == 1
        assert refused in str(errors[0])
    assert not grammars._verdicts._under_way


def test_a_failure_that_is_no_verdict_stays_with_its_thread(tokenizer: Tokenizer) -> None:
    verdicts, begun, release = Verdicts(), threading.Event(), threading.Event()

    def fails() -> str:
        begun.set()
        assert release.wait(60)
        raise MemoryError("of this thread")

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(verdicts.made, "key", fails)
        assert begun.wait(60)
        second = threads.submit(verdicts.made, "key", lambda: "made")
        release.set()
        assert isinstance(first.exception(), MemoryError)
        assert second.result() == "made"
    assert verdicts.made("key", lambda: "anew") == "anew"


def test_refusals_are_kept_within_bounds(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.encoding.verdicts.MOST_VERDICTS", 8)
    grammars = Grammars(tokenizer)
    for i in range(20):
        with pytest.raises(GrammarError, match="objekt"):
            grammars.json_schema({"type": "objekt", "title": "x" * 1000 + str(i)})
        assert len(grammars._verdicts._kept) <= 8
    with pytest.raises(GrammarError) as long:
        grammars.tool_calls([{"name": "f", "parameters": {"required": ["x" * 5_000]}}])
    assert len(str(long.value)) > 5_000
    with pytest.raises(GrammarError) as again:
        grammars.tool_calls([{"name": "f", "parameters": {"required": ["x" * 5_000]}}])
    assert str(again.value) == str(long.value)[:1_000]


def test_functions_are_tried_alone_once(tokenizer: Tokenizer, compiled: list[str]) -> None:
    grammars = Grammars(tokenizer)
    several = [{**NOW, "name": f"now_{i}"} for i in range(70)]  # more than grammars are kept
    assert [grammars.enforces(function) for function in (*several, ODD)] == [True] * 70 + [False]
    count, kept = len(compiled), [*grammars._kept]
    assert [grammars.enforces({**function, "description": "x"}) for function in (*several, ODD)] == [True] * 70 + [
        False
    ]
    assert (len(compiled), [*grammars._kept]) == (count, kept)


def test_states_do_not_share_their_place(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = grammars.json_schema(SCHEMA)
    first, second = grammar.start(), grammar.start()
    before = second.allowed()
    first.accept(tokenizer.encode_text("{")[0])
    assert second.allowed() == before != first.allowed()


def test_a_grammar_that_fails_is_compiled_anew(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = grammars.json_schema(SCHEMA)
    state = grammar.start()
    with pytest.raises(RuntimeError, match="the grammar of this answer"):
        state.accept(tokenizer.encode_text("x")[0])
    assert not any("json" in key and '"b"' in key for key in grammars._kept)
    assert follows(grammars.json_schema(SCHEMA), tokenizer, '{"a": 3, "b": "x"}')


def test_every_failure_of_the_engine_has_a_name(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As the engine raises it."""

    for error in (PanicException("it panicked"), RuntimeError("it gave up"), ValueError("it is wrong")):
        grammars = Grammars(tokenizer)

        def fail(source: str, error: BaseException = error) -> Any:
            raise error

        monkeypatch.setattr(grammars, "_compiled", fail)
        with pytest.raises(GrammarError, match="it"):
            grammars.json_object()


@pytest.mark.parametrize(
    ("prefix", "rest", "fits"),
    [
        ('{"a": ', '3, "b": "x"}', True),
        ('{"a": ', '{"a": 3, "b": "x"}', False),
        ('{"a": 3, "b": "x', '"}', True),
        ('{"a": 3, "b": "x"}', "", True),
    ],
)
def test_going_on_from_a_prefix(grammars: Grammars, tokenizer: Tokenizer, prefix: str, rest: str, fits: bool) -> None:
    assert follows(grammars.json_schema(SCHEMA).behind(prefix), tokenizer, rest) is fits


@pytest.mark.parametrize("prefix", ["```json\n", "[", '{"b"', '{"a": 3} and', "Sure: "])
def test_a_prefix_that_cannot_go_on(grammars: Grammars, prefix: str) -> None:
    with pytest.raises(GrammarError, match="begins with"):
        grammars.json_schema(SCHEMA).behind(prefix)


def test_thousands_of_tools_without_schemas(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """A rule for each would be more than the grammar engine takes."""
    named = [{"name": f"f{n}"} for n in range(4096)]
    grammar = grammars.tool_calls([NOW, *named, {"name": "any", "parameters": {"type": "object"}}])
    for name, right in (("f7", True), ("f4095", True), ("any", True), ("f4096", False), ("f", False)):
        for parameters in ((), (("x", "true", "text"), ("y", "false", "[1]"))):
            assert follows(grammar, tokenizer, block(tokenizer, call(tokenizer, name, *parameters))) is right
    assert not follows(grammar, tokenizer, block(tokenizer, call(tokenizer, "now", ("x", "true", "text"))))
