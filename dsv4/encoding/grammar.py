"""Answers that must follow a grammar: JSON schemas, regular expressions, DSML tool calls.

llguidance computes which tokens may come next. This file compiles its grammars, within limits and once for equal ones,
and turns its refusals into messages. A grammar has the interface of `ConstraintFactory` of dsv4.generation, without
importing it.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, Self, TypeVar

import llguidance

from dsv4.encoding.any_order_calls import any_order_rules
from dsv4.encoding.call_grammar import (
    MOST_CHARACTERS,
    OPENING,
    WHITESPACE,
    call_rules,
    free_block_rules,
    parameter_schemas,
    place_of,
)
from dsv4.encoding.schema import GrammarError, TooLargeError, check_size, patterns
from dsv4.encoding.text_rules import searched
from dsv4.encoding.tokenizer import Tokenizer
from dsv4.encoding.verdicts import Verdicts

__all__ = ["Grammar", "GrammarError", "GrammarState", "Grammars", "TooLargeError"]

_JSON_OPTIONS = {"json_allow_general_unicode_escapes": True, **WHITESPACE}
# compiled grammars that are kept, and the characters of their sources together
MOST_KEPT, MOST_KEPT_CHARACTERS = 64, 8_000_000
MOST_PATTERNS, FIRST_STEPS = 100, 6
# the engine's own limits: a grammar compiles within a second or two, and no mask takes long
_LIMITS = llguidance.LLParserLimits(max_lexer_states=50_000, verbose_errors=False)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Yielding:
    """What becomes of an answer when the grammar engine gives up on it: the rest is free. tell: is called with the
    reason. behind: only behind this token, and before it the answer fails; None = everywhere."""

    tell: Callable[[str], object]
    behind: int | None = None


class GrammarState:
    """The state of one answer under a grammar; before its trigger token every token is allowed."""

    def __init__(
        self, matcher: llguidance.LLMatcher, trigger: int | None, forget: Callable[[], None], yields: Yielding | None
    ) -> None:
        self._matcher, self._trigger, self._forget = matcher, trigger, forget
        self._yields, self._free = yields, False
        self._may_yield = yields is not None and yields.behind is None

    def allowed(self) -> bytes | None:
        """Bit i % 8 of byte i // 8: whether token i may come next; None = any. Raises RuntimeError when the grammar
        engine gives up (its limits) and the grammar does not yield."""
        if self._free or self._trigger is not None:
            return None
        return self._engine(self._matcher.compute_bitmask)

    def accept(self, token: int) -> None:
        """The token that was chosen. Raises RuntimeError as `allowed` does."""
        if self._trigger is not None:
            self._trigger = None if token == self._trigger else self._trigger
            return
        if not self._free:
            self._engine(lambda: self._matcher.consume_token(token))
            self._may_yield = self._may_yield or (self._yields is not None and token == self._yields.behind)

    def _engine(self, work: Callable[[], T]) -> T | None:
        """What the engine says; None when it has given up and the answer goes on without it."""
        try:
            result = _safely(work, _gave_up)
            if self._matcher.is_error():
                raise _gave_up(self._matcher.get_error())
            return result
        except RuntimeError as error:
            # answers share what the engine has worked out so far, and so also its limits
            self._forget()
            if self._yields is None or not self._may_yield:
                raise
            self._free = True
            self._yields.tell(str(error))
            return None


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar. trigger: the token after which it begins (the end of thinking), None = at once. yields: what
    happens when the engine gives up on an answer, None = the answer fails."""

    _matcher: llguidance.LLMatcher
    _tokenizer: Tokenizer
    _forget: Callable[[], None]
    _write: Callable[[], str]
    trigger: int | None = None
    begun: str = ""
    yields: Yielding | None = None

    def start(self) -> GrammarState:
        """A new answer; takes microseconds."""
        return GrammarState(self._matcher.deep_copy(), self.trigger, self._forget, self.yields)

    def source(self) -> tuple[str, str]:
        """Its kind and its text: `json` and a JSON schema, or `lark` and llguidance's form of Lark, for another program
        that has llguidance. Raises GrammarError for the grammar of the rest of a text."""
        if self.begun:
            raise GrammarError(f"constraint: the rest of a text that begins with {self.begun!r:.80} cannot be written")
        written = self._write()
        if not written.startswith("{"):
            return "lark", written
        [only] = json.loads(written)["grammars"]
        if only["json_schema"] is None:
            return "lark", only["lark_grammar"]
        return "json", _dumps({key: value for key, value in only["json_schema"].items() if key != "x-guidance"})

    def at_once(self) -> Self:
        """The same grammar, beginning with the answer."""
        return replace(self, trigger=None)

    def after(self, token: int) -> Self:
        """The same grammar, beginning after `token`."""
        return replace(self, trigger=token)

    def yielding(self, tell: Callable[[str], object], behind: int | None = None) -> Self:
        """The same grammar, which lets the rest of an answer be free where the engine gives up; as in `Yielding`."""
        return replace(self, yields=Yielding(tell, behind))

    def behind(self, text: str) -> Self:
        """The grammar of the text after `text`, with which the answer begins. Raises GrammarError if `text` does not
        fit."""
        matcher, tokens = self._matcher.deep_copy(), self._tokenizer.encode_text(text)
        if matcher.try_consume_tokens(tokens) < len(tokens) or matcher.is_error():
            raise GrammarError(f"no answer of this form begins with {text!r:.80}")
        return replace(self, _matcher=matcher, begun=self.begun + text)


class Grammars:
    """Makes grammars for one vocabulary. Thread-safe; `prepare`, or the first use, reads the vocabulary (the released
    one: a second).

    All methods raise GrammarError for what cannot be enforced, naming it. Compiling may take a second: do not call it
    in an event loop. Equal grammars are compiled once, also those that are refused.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._verdicts = Verdicts()
        self._lock = Lock()
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._reading = Lock()

    def prepare(self) -> None:
        """Read the vocabulary, so that no grammar waits for it; who needs one meanwhile waits for this."""
        _safely(self._read_vocabulary, _refused)

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """JSON text that the schema accepts, properties in the order of the schema."""

        def write() -> str:
            check_size(schema)
            self._try_patterns([schema])
            return llguidance.LLMatcher.grammar_from_json_schema(_dumps(schema), overrides=_JSON_OPTIONS)

        return self._make(f"json {_dumps(schema)}", write)

    def regex(self, pattern: str) -> Grammar:
        """Text that the whole pattern matches."""
        return self._make(f"regex {pattern}", lambda: llguidance.LLMatcher.grammar_from_regex(pattern))

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

        tag = f'"{self._tokenizer.dialect.calls_tag}>\\n" '
        begin = "" if inside else tag if opened else OPENING + tag

        def write() -> str:
            return self._rules(functions, parallel, begin)

        return self._of_calls(f"calls {parallel} {begin}", functions, write)

    def enforces(self, function: Mapping[str, Any]) -> bool:
        """Whether `tool_calls` takes this function alone. One that was asked for before displaces no grammar."""
        try:
            key = f"alone {_dumps(_shape(function))}"
        except GrammarError:
            return False
        return self._verdicts.accepts(key, lambda: self.tool_calls([function]))

    def calls_in_any_order(self, functions: Sequence[Mapping[str, Any]], *, parallel: bool = True) -> Grammar:
        """The rest of a block of calls behind its first control token, with the parameters in any order.

        It allows every call that the functions' schemas accept, and refuses no schema: what cannot be enforced is left
        out (see `any_order_calls`), in the end all but the names. Raises GrammarError if these cannot be enforced.
        """
        dialect = self._tokenizer.dialect
        dsml, begin = self._tokenizer.token_id(dialect.dsml), f'"{dialect.calls_tag}>\\n" '

        def rest(functions: Sequence[Mapping[str, Any]]) -> Grammar:
            rules = any_order_rules(functions, dialect, dsml, begin, parallel=parallel)
            return self._make(rules, lambda: llguidance.LLMatcher.grammar_from_lark(rules))

        try:
            return rest(functions)
        except GrammarError:
            return rest([{"name": function.get("name")} for function in functions])

    def json_schema_or_calls(
        self,
        schema: Mapping[str, Any],
        functions: Sequence[Mapping[str, Any]] | None,
        *,
        parallel: bool = True,
        any_order: bool = False,
    ) -> Grammar:
        """JSON text that the schema accepts, or a block of calls as in `tool_calls`; any_order: as in
        `calls_in_any_order`. functions: None = whatever follows the block's first control token."""
        self.json_schema(schema)  # its faults are named before those of the functions
        answer = _dumps({**schema, "x-guidance": WHITESPACE})

        dialect = self._tokenizer.dialect
        dsml, begin = self._tokenizer.token_id(dialect.dsml), f'{OPENING}"{dialect.calls_tag}>\\n" '

        def write() -> str:
            if functions is None:
                rules = free_block_rules(dsml)
            elif any_order:
                rules = any_order_rules(functions, dialect, dsml, begin, parallel=parallel)
            else:
                rules = self._rules(functions, parallel, begin)
            return f"start: block | answer\nanswer: %json {answer}\n{rules.replace('start: ', 'block: ', 1)}"

        kind = f"json or calls {parallel} {any_order} {functions is None} {answer}"
        return self._of_calls(kind, functions or (), write)

    def _read_vocabulary(self) -> llguidance.LLTokenizer:
        with self._reading:
            if self._vocabulary is None:
                tokenizer = self._tokenizer
                # unmarked, a control token could stand inside of text
                definition = tokenizer.definition_json(marked=True)
                self._vocabulary = llguidance.LLTokenizer(
                    definition, n_vocab=tokenizer.vocab_size, eos_token=tokenizer.eos_id
                )
            return self._vocabulary

    def _rules(self, functions: Sequence[Mapping[str, Any]], parallel: bool, begin: str) -> str:
        for index, function in enumerate(functions):
            try:
                check_size(function.get("parameters"))
            except GrammarError as error:
                raise GrammarError(f"{place_of(index)}: {error}") from None
        self._try_patterns([function.get("parameters") for function in functions])
        dialect = self._tokenizer.dialect
        return call_rules(functions, dialect, self._tokenizer.token_id(dialect.dsml), begin, parallel=parallel)

    def _of_calls(self, kind: str, functions: Sequence[Mapping[str, Any]], write: Callable[[], str]) -> Grammar:
        key = f"{kind} {_dumps([*map(_shape, functions)])}"
        return self._make(
            key, lambda: llguidance.LLMatcher.grammar_from_lark(write()), lambda: self._name_parameter(functions)
        )

    def _name_parameter(self, functions: Sequence[Mapping[str, Any]]) -> None:
        """Raise GrammarError for the first parameter whose schema is at fault by itself, if one is."""
        for index, function in enumerate(functions):
            for key, schema in parameter_schemas(function).items():
                try:
                    self.json_schema(schema)
                except GrammarError as error:
                    raise GrammarError(f"{place_of(index, key)}: {error}") from None

    def _try_patterns(self, schemas: Sequence[Any]) -> None:
        """Try each pattern alone, because the cost of a pattern shows only when its text begins."""
        found = patterns(schemas)
        if len(found) > MOST_PATTERNS:
            raise GrammarError(f"pattern: {len(found)} different ones; at most {MOST_PATTERNS} can be enforced")
        for pattern in found:
            self._verdicts.made(f"pattern {pattern}", partial(self._try_pattern, pattern))

    def _try_pattern(self, pattern: str) -> None:
        raw = f"start: TEXT\nTEXT: {searched(pattern)}"
        quoted = f"start: %json {_dumps({'type': 'string', 'pattern': pattern})}"
        try:
            for source in (raw, quoted):
                self._walk(self._make(source, lambda lark=source: llguidance.LLMatcher.grammar_from_lark(lark)))
        except GrammarError as error:
            raise GrammarError(f"pattern {pattern!r:.80}: {error}") from None
        except RuntimeError as error:
            raise GrammarError(f"pattern {pattern!r:.80}: too complex to enforce ({error})") from None

    def _walk(self, grammar: Grammar) -> None:
        """Take a few of the tokens that are allowed. Raises RuntimeError if the engine exceeds its limits."""
        state = grammar.start()
        for _ in range(FIRST_STEPS):
            token = int.from_bytes(state.allowed() or b"", "little").bit_length() - 1
            if token in (-1, self._tokenizer.eos_id):
                return
            state.accept(token)

    def _make(self, key: str, write: Callable[[], str], name_fault: Callable[[], object] | None = None) -> Grammar:
        """The grammar whose source `write` returns, or the one cached under `key`, which must identify it
        completely. name_fault: may raise a GrammarError that names more than the engine's refusal."""
        matcher = self._found(key)
        if matcher is None:
            self.prepare()  # a failure here is none of the grammar
            matcher = self._verdicts.made(key, lambda: self._found(key) or self._kept_from_now(key, write, name_fault))
        return Grammar(matcher, self._tokenizer, partial(self._drop, key), write)

    def _found(self, key: str) -> llguidance.LLMatcher | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _kept_from_now(
        self, key: str, write: Callable[[], str], name_fault: Callable[[], object] | None
    ) -> llguidance.LLMatcher:
        try:
            matcher = _safely(lambda: self._compiled(write()), _refused)
        except _EngineRefusal:
            if name_fault is not None:
                name_fault()
            raise
        with self._lock:
            self._kept[key] = matcher
            while len(self._kept) > MOST_KEPT or sum(map(len, self._kept)) > MOST_KEPT_CHARACTERS:
                self._kept.popitem(last=False)
        return matcher

    def _drop(self, key: str) -> None:
        with self._lock:
            self._kept.pop(key, None)

    def _compiled(self, source: str) -> llguidance.LLMatcher:
        if len(source) > MOST_CHARACTERS:
            raise GrammarError(f"its grammar has more than {MOST_CHARACTERS:,} characters")
        matcher = llguidance.LLMatcher(self._read_vocabulary(), source, log_level=0, limits=_LIMITS)
        # some faults show at the first token only, such as a schema that refers to itself without end
        first = matcher.deep_copy()
        possible = any(first.compute_bitmask())
        if first.is_error() or not possible:
            raise _refused(first.get_error().replace("NoExtensionBias", "no answer can follow the schema"))
        return matcher


class _EngineRefusal(GrammarError):
    """The engine's own message, which does not name the place of the fault."""


def _shape(function: Mapping[str, Any]) -> dict[str, Any]:
    """What a grammar has of a function."""
    return {"name": function.get("name"), "parameters": function.get("parameters")}


def _safely(work: Callable[[], T], failed: Callable[[object], Exception]) -> T:
    """Run `work`; every failure of the grammar engine becomes the exception that `failed` makes."""
    try:
        return work()
    except GrammarError:
        raise
    except (ValueError, RecursionError, RuntimeError) as error:
        raise failed(error) from error
    except BaseException as error:
        # a panic of the engine is no Exception, and its class cannot be imported
        if type(error).__name__ != "PanicException":
            raise
        raise failed(error) from error


def _refused(error: object) -> GrammarError:
    if isinstance(error, RecursionError):
        return GrammarError("nested too deep")
    first = str(error).splitlines()
    return _EngineRefusal(first[0][:300] if first else "the grammar engine failed")


def _gave_up(error: object) -> RuntimeError:
    first = str(error).splitlines()
    return RuntimeError(
        f"the grammar of this answer grew too complex: {first[0][:300] if first else 'no reason given'}"
    )


def _dumps(schema: object) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except RecursionError as error:
        raise _refused(error) from error
    except (TypeError, ValueError) as error:
        raise GrammarError(f"the schema is no JSON: {error}") from error
