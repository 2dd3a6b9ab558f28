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


def call_guard(
    grammars: Grammars, tokenizer: Tokenizer, functions: Sequence[dict[str, Any]], *, parallel: bool
) -> "CallGuard | None":
    """The guard for calls of these functions; None, with a line in the log, if not even their names can be enforced.
    parallel: more than one call may follow."""
    try:
        return CallGuard(grammars.calls_in_any_order(functions, parallel=parallel), tokenizer)
    except GrammarError as error:
        unguarded(str(error))
        return None


def unguarded(error: str) -> None:
    """Write into the log that calls of an answer are as the model writes them, and why."""
    log(UNGUARDED, error=error)


@dataclass(frozen=True, slots=True)
class CallGuard:
    """Lets every token through until a block of calls begins: the control token behind a `<`. From there on the rest of
    the answer follows `grammar`, until the grammar engine gives up."""

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
        self._grammar, self._tokenizer = guard.grammar.yielding(unguarded), guard.tokenizer
        self._state: GrammarState | None = None
        self._dsml = guard.tokenizer.token_id(guard.tokenizer.dialect.dsml)
        self._last: int | None = None

    def allowed(self) -> bytes | None:
        return None if self._state is None else self._state.allowed()

    def accept(self, token: int) -> None:
        if self._state is not None:
            self._state.accept(token)
        elif token == self._dsml and self._opens():
            self._state = self._grammar.start()
        self._last = token

    def _opens(self) -> bool:
        """Whether the control token opens a block here; elsewhere it is left out of the text."""
        return self._last is not None and self._tokenizer.token_bytes(self._last).endswith(b"<")
