"""Pieces of a rendered prompt, each marked with its author.

The released encoding is one string, in which a user who types `<｜User｜>` makes a real role token. Keeping
the author of each piece lets the tokenizer turn control strings into control tokens only where the renderer
wrote them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text: `trusted` if the renderer wrote it, untrusted if it came from a message.

    said_by: the assistant message whose answer this is part of (`messages[2]`), its markup and end token included;
    empty for what an answer is given to.

    >>> Segment("<｜User｜>", trusted=True)
    """

    text: str
    trusted: bool
    said_by: str = ""


class SegmentWriter:
    """Collects text in order; neighbours of equal trust and of one speaker become one segment, and empty text adds
    nothing. Set `said_by` before the text of an answer, and back to "" behind it."""

    def __init__(self) -> None:
        self.said_by = ""
        self._runs: list[tuple[bool, str, list[str]]] = []

    def markup(self, text: str) -> None:
        """Append text made by the renderer (trusted)."""
        self._append(text, trusted=True)

    def data(self, text: str) -> None:
        """Append text taken from a message (untrusted)."""
        self._append(text, trusted=False)

    def segments(self) -> list[Segment]:
        """All text so far; joining the texts gives the rendered string."""
        return [Segment("".join(parts), trusted, said_by) for trusted, said_by, parts in self._runs]

    def _append(self, text: str, *, trusted: bool) -> None:
        if not text:
            return
        if self._runs and self._runs[-1][:2] == (trusted, self.said_by):
            self._runs[-1][2].append(text)
        else:
            self._runs.append((trusted, self.said_by, [text]))
