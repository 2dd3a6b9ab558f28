"""Control tokens inside generated text: marked text.

A model may quote `</think>` with ordinary tokens; only the token `</think>` closes a thought. So the parsers read
marked text: every control token is one lone surrogate, a character that no decoded text can hold, and everything else
is ordinary text.
"""

import re
from collections.abc import Mapping
from functools import cache

from dsv4.encoding.dialect import Dialect

EOS = "\udc00"
ROLE = "\udc01"  # any role token: an assistant's turn holds none, so it ends the answer
THINK_OPEN = "\udc02"
THINK_CLOSE = "\udc03"
DSML = "\udc04"
BOS = "\udc05"
# padding, tasks, placeholders and other added tokens are part of no text
NOISE = ""

ANY = re.compile("[\udc00-\udc05]")
ENDS = (EOS, ROLE)
# roles that other releases have; a dialect names those it writes
OTHER_ROLES = frozenset({"<｜System｜>", "<｜Developer｜>", "<｜Tool｜>"})


class Controls:
    """The control tokens of one dialect as marks, and back."""

    def __init__(self, dialect: Dialect) -> None:
        marks = {
            dialect.eos: EOS,
            dialect.think_open: THINK_OPEN,
            dialect.think_close: THINK_CLOSE,
            dialect.dsml: DSML,
            dialect.bos: BOS,
        }
        roles = {dialect.user, dialect.assistant, dialect.latest_reminder} | OTHER_ROLES
        self._marks = dict.fromkeys(dialect.control_tokens, NOISE) | dict.fromkeys(roles, ROLE) | marks
        self._texts = {ord(mark): text for text, mark in marks.items()} | {ord(ROLE): None}
        self._pattern = re.compile("|".join(map(re.escape, dialect.control_tokens)))
        self._starts = "".join({token[0] for token in dialect.control_tokens})

    def mark(self, token: str) -> str:
        """The mark of the control token `token`; empty if this dialect has no such token."""
        return self._marks.get(token, NOISE)

    def read(self, text: str) -> tuple[str, str]:
        """Plain text as marked text, with every control text replaced by its mark; and the rest at its end that may be
        the start of a control text, to be put before the next text."""
        if not any(start in text for start in self._starts):
            return text, ""
        marked, end = "", 0
        for found in self._pattern.finditer(text):
            marked += text[end : found.start()] + self._marks[found.group()]
            end = found.end()
        held = max((overlap(text[end:], token) for token in self._marks), key=len)
        return marked + text[end : len(text) - len(held)], held

    def plain(self, marked: str) -> str:
        """Marked text as plain text, without role tokens."""
        return marked if marked.isascii() else marked.translate(self._texts)


@cache
def controls_of(dialect: Dialect) -> Controls:
    """Made once for each dialect: an answer only reads them."""
    return Controls(dialect)


def ending_tokens(dialect: Dialect, controls: Mapping[int, str]) -> tuple[int, ...]:
    """The ids of the tokens at which a message ends: its end token, and the roles. controls: of a tokenizer."""
    marks = controls_of(dialect)
    return tuple(token for token, text in controls.items() if marks.mark(text) in ENDS)


def overlap(text: str, marker: str) -> str:
    """The longest suffix of `text` that is a proper prefix of `marker`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return marker[:length]
    return ""
