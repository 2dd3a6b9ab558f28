"""Pieces of a rendered prompt, each marked with its author.

The released encoding is one string, in which a user who types `<｜User｜>` makes a real role token. Keeping
the author of each piece lets the tokenizer turn control strings into control tokens only where the renderer
wrote them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text: `trusted` if the renderer wrote it, untrusted if it came from a message.

    >>> Segment("<｜User｜>", trusted=True)
    """

    text: str
    trusted: bool


class SegmentWriter:
    """Collects text in order; neighbours of equal trust become one segment, and empty text adds nothing."""

    def __init__(self) -> None:
        self._runs: list[tuple[bool, list[str]]] = []

    def markup(self, text: str) -> None:
        """Append text made by the renderer (trusted)."""
        self._append(text, trusted=True)

    def data(self, text: str) -> None:
        """Append text taken from a message (untrusted)."""
        self._append(text, trusted=False)

    def segments(self) -> list[Segment]:
        """All text so far; joining the texts gives the rendered string."""
        return [Segment("".join(parts), trusted) for trusted, parts in self._runs]

    def _append(self, text: str, *, trusted: bool) -> None:
        if not text:
            return
        if self._runs and self._runs[-1][0] is trusted:
            self._runs[-1][1].append(text)
        else:
            self._runs.append((trusted, [text]))
