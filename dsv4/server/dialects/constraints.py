"""Constraints on an answer: forced calls, strict schemas and JSON, by a grammar that begins after the reasoning; other
calls, by a grammar that begins with them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from dsv4.encoding import Tokenizer
from dsv4.encoding.controls import ending_tokens
from dsv4.encoding.grammar import Grammar, GrammarError, Grammars, TooLargeError
from dsv4.generation import ConstraintFactory, ConstraintStage, StagedConstraint, TokenConstraint
from dsv4.server.dialects.call_guard import call_guard, unguarded
from dsv4.server.dialects.request import GenerationRequest
from dsv4.server.wire.errors import ApiError


class Desk(Protocol):
    """The objects that a grammar needs; a `Backend` has them, and so has `dsv4.api.LocalModel`."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def grammars(self) -> Grammars: ...


def constraint(backend: Desk, request: GenerationRequest, *, guarded: bool = True) -> ConstraintFactory | None:
    """The constraint on the answer, None without one. guarded: calls that nothing else constrains have the form of
    their schemas. Raises ApiError 400 for a schema that cannot be enforced."""
    grammar = _grammar(backend, request, guarded=guarded)
    if request.budget is None or not request.opens_thinking:
        return grammar
    return ThinkingBudget(grammar, backend.tokenizer, request.budget)


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """Allows at most `tokens` tokens of reasoning, then only its closing mark. then: a further constraint."""

    then: ConstraintFactory | None
    tokenizer: Tokenizer
    tokens: int

    def start(self) -> TokenConstraint:
        token_id, dialect = self.tokenizer.token_id, self.tokenizer.dialect
        then = self.then.start() if self.then else None
        ends = (token_id(dialect.think_close), token_id(dialect.dsml))
        return _Budgeted(then, ends, self.tokenizer.vocab_size, self.tokens)

    def stages(self) -> tuple[ConstraintStage, ...]:
        """The reasoning, then what `then` has. In parts a call cannot begin inside the reasoning."""
        dialect = self.tokenizer.dialect
        close = self.tokenizer.token_id(dialect.think_close)
        whole = (ConstraintStage(grammar=self.then),)
        first, *others = self.then.stages() if isinstance(self.then, StagedConstraint) else whole
        if first.until == close:
            return (replace(first, most=self.tokens), *others)
        free = first == ConstraintStage() and not others
        banned = () if free else (self.tokenizer.token_id(dialect.dsml),)
        return (ConstraintStage(close, self.tokens, banned), first, *others)


class _Budgeted:
    """The state of one answer under a `ThinkingBudget`. ends: the tokens that end the reasoning: its closing mark,
    which a spent budget forces, and that of a call."""

    def __init__(self, then: TokenConstraint | None, ends: tuple[int, int], vocabulary: int, tokens: int) -> None:
        self._then, self._ends, self._left = then, ends, tokens
        close = ends[0]
        only = bytearray(-(-vocabulary // 8))
        only[close // 8] = 1 << close % 8
        self._only, self._thinking = bytes(only), True

    def allowed(self) -> bytes | None:
        if self._thinking and self._left <= 0:
            return self._only
        return self._then.allowed() if self._then is not None else None

    def accept(self, token: int) -> None:
        self._thinking = self._thinking and token not in self._ends
        self._left -= 1
        if self._then is not None:
            self._then.accept(token)


def _grammar(backend: Desk, request: GenerationRequest, *, guarded: bool) -> ConstraintFactory | None:
    grammars, tokenizer = backend.grammars, backend.tokenizer
    try:
        if request.tools and request.choice.mode == "required":
            grammar = _forced_calls(grammars, request)
        elif request.schema is not None and request.tools:
            grammar = _json_or_calls(backend, request, request.schema, guarded=guarded)
        elif request.schema is not None:
            grammar = grammars.json_schema(request.schema)
        elif request.enforces_calls:
            dsml = tokenizer.token_id(tokenizer.dialect.dsml)
            make = partial(grammars.tool_calls, parallel=request.parallel, opened=True)
            return _enforced(grammars, request, request.callable, make).after(dsml)
        elif request.shown and not request.tools:
            return WithoutCalls(tokenizer)
        elif request.tools and guarded:
            return call_guard(grammars, tokenizer, request.callable, parallel=request.parallel)
        else:
            return None
    except GrammarError as error:
        param = "tools" if request.schema is None or str(error).startswith("tools") else "response_format"
        problem = str(error) if str(error).startswith(param) else f"{param}: {error}"
        raise ApiError(400, problem, param=param) from error
    if request.opens_thinking:
        return AfterThinking(grammar, tokenizer)
    forced = request.tools and request.choice.mode == "required"
    return grammar if request.schema is None or forced else _behind_prefix(grammar, request)


def _json_or_calls(backend: Desk, request: GenerationRequest, schema: Mapping[str, Any], *, guarded: bool) -> Grammar:
    """JSON, which the client demands, or calls, which it demands only of strict tools and of allowed ones. Raises
    GrammarError for what it demands."""
    grammars, dialect = backend.grammars, backend.tokenizer.dialect
    grammars.json_schema(schema)  # nothing below is worth a try if it is at fault
    make = partial(grammars.json_schema_or_calls, schema, parallel=request.parallel)
    if request.enforces_calls:
        return _enforced(grammars, request, request.callable, make)
    named = partial(make, _bare(request.callable))  # older engines elsewhere know its form
    grammar = None
    for attempt in (partial(make, request.callable, any_order=True), named) if guarded else (named,):
        try:
            grammar = attempt()
            break
        except GrammarError as error:
            unguarded(str(error))
    return (grammar or make(None)).yielding(unguarded, behind=backend.tokenizer.token_id(dialect.dsml))


def _behind_prefix(grammar: Grammar, request: GenerationRequest) -> Grammar:
    """The grammar of the rest of an answer in JSON whose beginning the client has sent."""
    prefix = str(request.messages[-1]["content"]).lstrip() if request.continued and request.messages else ""
    try:
        return grammar.behind(prefix) if prefix else grammar
    except GrammarError as error:
        raise ApiError(400, f"messages: the last one is to be continued, but {error}", param="messages") from error


@dataclass(frozen=True, slots=True)
class AfterThinking:
    """A grammar that begins after the reasoning. The reasoning is free, but it cannot contain a call, nor a token that
    ends the message: the answer that the client demands would be missing."""

    grammar: Grammar
    tokenizer: Tokenizer

    def start(self) -> TokenConstraint:
        mask = _all_but(self.tokenizer, self._banned())
        return _Thinking(mask, self.tokenizer.token_id(self.tokenizer.dialect.think_close), self.grammar.start())

    def stages(self) -> tuple[ConstraintStage, ...]:
        """The reasoning, then the grammar."""
        close = self.tokenizer.token_id(self.tokenizer.dialect.think_close)
        return ConstraintStage(close, None, self._banned()), ConstraintStage(grammar=self.grammar)

    def _banned(self) -> tuple[int, ...]:
        tokenizer = self.tokenizer
        ends = ending_tokens(tokenizer.dialect, tokenizer.controls)
        return (*ends, tokenizer.token_id(tokenizer.dialect.dsml))


class _Thinking:
    """The state of one answer under `AfterThinking`."""

    def __init__(self, mask: bytes, trigger: int, then: TokenConstraint) -> None:
        self._mask, self._trigger, self._then = mask, trigger, then
        self._over = False

    def allowed(self) -> bytes | None:
        return self._then.allowed() if self._over else self._mask

    def accept(self, token: int) -> None:
        if self._over:
            self._then.accept(token)
        self._over = self._over or token == self._trigger


@dataclass(frozen=True, slots=True)
class WithoutCalls:
    """Allows every token but the one that opens a call, for an answer whose prompt shows tools that must not be
    called."""

    tokenizer: Tokenizer

    def start(self) -> TokenConstraint:
        return _Always(_all_but(self.tokenizer, [self.tokenizer.token_id(self.tokenizer.dialect.dsml)]))

    def stages(self) -> tuple[ConstraintStage, ...]:
        """One part without that token."""
        return (ConstraintStage(banned=(self.tokenizer.token_id(self.tokenizer.dialect.dsml),)),)


class _Always:
    """The state of one answer under `WithoutCalls`."""

    def __init__(self, mask: bytes) -> None:
        self._mask = mask

    def allowed(self) -> bytes:
        return self._mask

    def accept(self, token: int) -> None:
        """Does nothing: every step has the same mask."""


def _all_but(tokenizer: Tokenizer, banned: Sequence[int]) -> bytes:
    """The mask of all tokens but some."""
    mask = bytearray(b"\xff" * -(-tokenizer.vocab_size // 8))
    for token in banned:
        mask[token // 8] &= ~(1 << token % 8)
    return bytes(mask)


def _forced_calls(grammars: Grammars, request: GenerationRequest) -> Grammar:
    named = request.choice.name
    functions = [function for function in request.callable if named in (None, function["name"])]
    make = partial(grammars.tool_calls, parallel=request.parallel and named is None, inside=request.opens_call)
    return _enforced(grammars, request, functions, make)


def _enforced(
    grammars: Grammars,
    request: GenerationRequest,
    functions: Sequence[dict[str, Any]],
    make: Callable[[Sequence[dict[str, Any]]], Grammar],
) -> Grammar:
    """The grammar that `make` makes of the functions: of all schemas; else of those that can be enforced alone; else of
    those of strict functions. Raises GrammarError where not even these can be enforced."""
    least = [function if function["name"] in request.strict else _bare([function])[0] for function in functions]
    wanted = [*functions]
    while wanted != least:
        try:
            return make(wanted)
        except GrammarError as error:
            unguarded(str(error))
            alone = least if isinstance(error, TooLargeError) else _enforceable(grammars, request, wanted)
            wanted = least if alone == wanted else alone
    try:
        return make(least)
    except GrammarError as error:
        raise GrammarError(_placed(str(error), functions, request)) from error


def _placed(message: str, functions: Sequence[dict[str, Any]], request: GenerationRequest) -> str:
    """A message that may begin with the place of one of these functions, with its place in the request, where others
    may stand before it that must not be called."""
    begun = re.match(r"tools\[(\d+)\]", message)
    if begun is None:
        return message
    name = functions[int(begun[1])]["name"]
    return f"tools[{[function['name'] for function in request.shown].index(name)}]{message[begun.end() :]}"


def _enforceable(
    grammars: Grammars, request: GenerationRequest, functions: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The functions. Those that are not strict and whose schema cannot be enforced have only a name, so that the model
    can still call them."""
    shapes: list[dict[str, Any]] = []
    for function in functions:
        keep = function["name"] in request.strict or grammars.enforces(function)
        shapes.append(function if keep else _bare([function])[0])
    return shapes


def _bare(functions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": function["name"]} for function in functions]
