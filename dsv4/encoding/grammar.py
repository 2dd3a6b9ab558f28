"""Answers that must follow a grammar: JSON schemas, regular expressions, DSML tool calls.

llguidance computes which tokens may come next; here its grammars are written and its refusals get names. A grammar is a
`ConstraintFactory` of dsv4.generation in shape; nothing of it is imported.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import llguidance

from dsv4.encoding.tokenizer import Tokenizer

# white space between the parts of JSON is bounded: a small model may write nothing else
_WHITESPACE = {"whitespace_pattern": r"[ \n\r\t]{0,32}"}
_JSON_OPTIONS = {"json_allow_general_unicode_escapes": True, **_WHITESPACE}


class GrammarError(ValueError):
    """A schema or pattern that cannot be enforced; the message names what is not supported."""


class GrammarState:
    """One answer under a grammar; before its trigger token everything is allowed."""

    def __init__(self, matcher: llguidance.LLMatcher, trigger: int | None) -> None:
        self._matcher, self._trigger = matcher, trigger

    def allowed(self) -> bytes | None:
        """Bit i % 8 of byte i // 8: whether token i may come next; None = any. Raises RuntimeError when the grammar
        engine gives up (its limits)."""
        if self._trigger is not None:
            return None
        mask = self._matcher.compute_bitmask()
        self._check()
        return mask

    def accept(self, token: int) -> None:
        """The token that was chosen."""
        if self._trigger is not None:
            self._trigger = None if token == self._trigger else self._trigger
            return
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar engine failed: {self._matcher.get_error()}")


@dataclass(frozen=True, slots=True)
class Grammar:
    """A checked grammar. trigger: the token after which it begins (the end of thinking), None = at once."""

    _tokenizer: llguidance.LLTokenizer
    _source: str
    trigger: int | None = None

    def start(self) -> GrammarState:
        """A new answer."""
        return GrammarState(llguidance.LLMatcher(self._tokenizer, self._source), self.trigger)

    def after(self, token: int) -> Self:
        """The same grammar, beginning after `token`."""
        return type(self)(self._tokenizer, self._source, token)


class Grammars:
    """Makes grammars for one vocabulary. Thread-safe; the first use reads the vocabulary (tens of milliseconds).

    All methods raise GrammarError for what cannot be enforced, naming it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """JSON text that the schema accepts, properties in the order of the schema."""
        return self._make(llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON_OPTIONS))

    def regex(self, pattern: str) -> Grammar:
        """Text that the whole pattern matches."""
        return self._make(llguidance.LLMatcher.grammar_from_regex(pattern))

    def tool_calls(
        self,
        functions: Sequence[Mapping[str, Any]],
        *,
        parallel: bool = True,
        opened: bool = False,
        inside: bool = False,
    ) -> Grammar:
        """A block of at least one DSML tool call. functions: OpenAI function objects (`name`, `parameters`).

        parallel: more than one call may follow. opened: the text up to the block's first control token is there already
        (with `after` that token: text stays free until the model opens a block). inside: the whole opening tag is.
        """
        if not functions:
            raise GrammarError("tools: at least one is needed")
        calls_tag, dsml = self._tokenizer.dialect.calls_tag, '"\\n\\n<" dsml '
        begin = "" if inside else f'"{calls_tag}>\\n" ' if opened else f'{dsml}"{calls_tag}>\\n" '
        return self._make(llguidance.LLMatcher.grammar_from_lark(self._lark(functions, parallel, begin)))

    def json_schema_or_calls(
        self, schema: Mapping[str, Any], functions: Sequence[Mapping[str, Any]], *, parallel: bool = True
    ) -> Grammar:
        """JSON text that the schema accepts, or a block of calls as in `tool_calls`."""
        begin = f'"\\n\\n<" dsml "{self._tokenizer.dialect.calls_tag}>\\n" '
        lark = self._lark(functions, parallel, begin).replace("start: ", "block: ", 1)
        return self._make(
            llguidance.LLMatcher.grammar_from_lark(
                f"start: block | answer\nanswer: %json {json.dumps({**schema, 'x-guidance': _WHITESPACE})}\n{lark}"
            )
        )

    @cached_property
    def _vocabulary(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(
            self._tokenizer.definition_json(), n_vocab=self._tokenizer.vocab_size, eos_token=self._tokenizer.eos_id
        )

    def _make(self, source: str) -> Grammar:
        error = llguidance.LLMatcher.validate_grammar(source, self._vocabulary)
        if error:
            raise GrammarError(error.splitlines()[0])
        return Grammar(self._vocabulary, source)

    def _lark(self, functions: Sequence[Mapping[str, Any]], parallel: bool, begin: str) -> str:
        dialect = self._tokenizer.dialect
        dsml = self._tokenizer.token_id(dialect.dsml)
        more = ' ("\\n<" call)*' if parallel else ""
        rules = [
            # NOTE: the lexer is greedy: a line break belongs to the bracket after it, or it would end a longer one
            f'start: {begin}"<" call{more} "\\n</" dsml "{dialect.calls_tag}>"',
            "call: " + " | ".join(f"call_{i}" for i in range(len(functions))),
            f"dsml: <[{dsml}]>",
            f'open: dsml "{dialect.parameter_tag} name=\\""',
            f'close: dsml "{dialect.parameter_tag}>"',
            # a value is raw text up to the closing tag; only the control token can end it
            "RAW: /(.|\\n)*<\\//",
            'KEY: /[^"\\n]+/',
        ]
        for i, function in enumerate(functions):
            rules += _function_rules(f"f{i}", i, function, dialect.invoke_tag)
        return "\n".join(rules)


def _function_rules(prefix: str, index: int, function: Mapping[str, Any], tag: str) -> list[str]:
    """The call of one function: its parameters in the order of the schema, each at most once, required ones always."""
    name, schema = function.get("name"), function.get("parameters") or {}
    if not isinstance(name, str) or not name:
        raise GrammarError(f"tools[{index}].function.name must be a non-empty string, got {name!r}")
    if not isinstance(schema, Mapping):
        raise GrammarError(f"tools[{index}].function.parameters must be a JSON schema object")
    properties, required = schema.get("properties") or {}, set(schema.get("required") or ())
    unknown = required - set(properties)
    if unknown:
        raise GrammarError(f"tools[{index}]: required names {sorted(unknown)[0]!r}, which is not in properties")
    head = f'{tag} name="{name}">\n'
    some = f'{json.dumps(head, ensure_ascii=False)} {prefix}_first_0 "\\n</"'
    none = json.dumps(head + "\n</", ensure_ascii=False)
    rules = [f'call_{index}: dsml ({some if required else f"{none} | {some}"}) dsml "{tag}>"']
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    if not properties:
        rules.append(f'{prefix}_first_0: "<" {prefix}_any ("\\n<" {prefix}_any)*')
        rules.append(f'{prefix}_any: open KEY "\\" string=\\"" ("true\\">" RAW | "false\\">" %json {{}} "</") close')
        return rules
    count = len(properties)
    for i, (key, value) in enumerate(properties.items()):
        rules += _parameter_rules(f"{prefix}_p{i}", key, {**definitions, **value} if isinstance(value, dict) else value)
        skip_first = "" if key in required or i + 1 == count else f" | {prefix}_first_{i + 1}"
        skip_rest = "" if key in required else f" | {prefix}_rest_{i + 1}"
        rules.append(f'{prefix}_first_{i}: "<" {prefix}_p{i} {prefix}_rest_{i + 1}{skip_first}')
        rules.append(f'{prefix}_rest_{i}: "\\n<" {prefix}_p{i} {prefix}_rest_{i + 1}{skip_rest}')
    return [*rules, f'{prefix}_rest_{count}: ""']


def _parameter_rules(rule: str, key: str, schema: Any) -> list[str]:
    """One parameter: strings raw, everything else as JSON, as the release writes them."""
    name = json.dumps(key, ensure_ascii=False)
    kind = schema.get("type") if isinstance(schema, dict) else None
    as_json = f'{rule}: open {name} "\\" string=\\"false\\">" {rule}_json "</" close'
    json_rule = f"{rule}_json: %json {json.dumps(schema)}"
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None) if isinstance(schema, dict) else None
    if choices is not None and all(isinstance(choice, str) for choice in choices):
        values = " | ".join(json.dumps(f"{choice}</", ensure_ascii=False) for choice in choices)
        return [f'{rule}: open {name} "\\" string=\\"true\\">" ({values}) close']
    if kind == "string":
        return [f'{rule}: open {name} "\\" string=\\"true\\">" RAW close']
    if kind is None or (isinstance(kind, list) and "string" in kind):
        raw = f'open {name} "\\" string=\\"true\\">" RAW close'
        return [as_json + f" | {raw}", json_rule]
    return [as_json, json_rule]
