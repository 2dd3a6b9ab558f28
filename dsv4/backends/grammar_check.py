"""Whether a back end keeps to a grammar: what it says is checked here, token by token."""

from collections.abc import Sequence

from dsv4.generation import ConstraintStage, TokenConstraint, WrittenGrammar


class GrammarCheck:
    """The state of one part of an answer. Grammars in Lark mean here what they mean there, since llguidance computes
    both; JSON schemas do not, because other grammar engines may allow other white space and orders, so the answers to
    them are not checked."""

    def __init__(self, stage: ConstraintStage) -> None:
        grammar = stage.grammar
        checked = grammar is not None and isinstance(grammar, WrittenGrammar) and grammar.source()[0] == "lark"
        self._state: TokenConstraint | None = grammar.start() if grammar is not None and checked else None
        self._banned = frozenset(stage.banned)

    def refuses(self, token: int) -> str | None:
        """Why the token must not come, None if it may; then it counts as said."""
        if token in self._banned:
            return f"the engine said token {token}, which this answer cannot hold"
        if self._state is None:
            return None
        try:
            return self._refused(self._state, token)
        except RuntimeError as error:  # the grammar engine gives up on this side
            self._state = None
            return str(error)

    def cut(self, stop_ids: Sequence[int]) -> str | None:
        """Why the answer must not end here without an end token, None if it may."""
        try:
            mask = None if self._state is None else self._state.allowed()
        except RuntimeError as error:
            return str(error)
        open_end = mask is None or any(_has(mask, token) for token in stop_ids)
        if open_end and self._banned.isdisjoint(stop_ids):
            return None
        return "the engine ended the answer before it was complete"

    def _refused(self, state: TokenConstraint, token: int) -> str | None:
        mask = state.allowed()
        if mask is not None and not _has(mask, token):
            self._state = None
            return (
                f"the engine does not follow the grammar of this answer (token {token}): it needs llguidance "
                "(vLLM: --structured-outputs-config.backend guidance; SGLang: --grammar-backend llguidance)"
            )
        state.accept(token)
        return None


def _has(mask: bytes, token: int) -> bool:
    return token // 8 < len(mask) and bool(mask[token // 8] >> token % 8 & 1)
