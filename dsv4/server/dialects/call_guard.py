"""Calls that the model makes of its own choice are whole and have the form of their schemas, by a grammar that begins
with the call and is given up rather than lets a request fail."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.encoding import Tokenizer
from dsv4.encoding.grammar import Grammar, GrammarError, Grammars, GrammarState
from dsv4.generation import ConstraintStage, TokenConstraint
from dsv4.observe import log

UNGUARDED = "calls_unguarded"


def call_guard(grammars: Grammars, tokenizer: Tokenizer, functions: Sequence[dict[str, Any]]) -> "CallGuard | None":
    """The guard for calls of these functions; None, with a line in the log, if not even their names can be enforced."""
    try:
        return CallGuard(grammars.calls_in_any_order(functions), tokenizer)
    except GrammarError as error:
        log(UNGUARDED, error=str(error), functions=len(functions))
        return None


@dataclass(frozen=True, slots=True)
class CallGuard:
    """Lets every token through until a block of calls begins: the control token behind a `<`. From there on the rest of
    the answer follows `grammar`."""

    grammar: Grammar
    tokenizer: Tokenizer

    def start(self) -> TokenConstraint:
        return _Guarded(self)

    def stages(self) -> tuple[ConstraintStage, ...]:
        """One part without a limit: to ask an engine elsewhere for the call alone would cost a second request."""
        return (ConstraintStage(),)


class _Guarded:
    """The state of one answer under a `CallGuard`."""

    def __init__(self, guard: CallGuard) -> None:
        self._guard = guard
        self._state: GrammarState | None = None
        self._dsml = guard.tokenizer.token_id(guard.tokenizer.dialect.dsml)
        self._last: int | None = None
        self._given_up = False

    def allowed(self) -> bytes | None:
        if self._state is None:
            return None
        try:
            return self._state.allowed()
        except RuntimeError as error:
            return self._give_up(error)

    def accept(self, token: int) -> None:
        if self._state is not None:
            try:
                self._state.accept(token)
            except RuntimeError as error:
                self._give_up(error)
        elif token == self._dsml and self._opens() and not self._given_up:
            self._state = self._guard.grammar.start()
        self._last = token

    def _opens(self) -> bool:
        """Whether the control token opens a block here; elsewhere it is left out of the text."""
        return self._last is not None and self._guard.tokenizer.token_bytes(self._last).endswith(b"<")

    def _give_up(self, error: RuntimeError) -> None:
        log(UNGUARDED, error=str(error))
        self._state, self._given_up = None, True
