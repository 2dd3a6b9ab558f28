"""Stop strings, found in text that arrives in pieces."""

from collections.abc import Sequence

from dsv4.encoding.controls import overlap


class StopStrings:
    """Cuts text before the first stop string, wherever the borders between pieces fall.

    If several stop strings occur, the one that is complete first counts, so the result does not depend on the pieces.
    `found` is set once one was found, `hit` says which.

    >>> matcher = StopStrings(["END"])
    >>> matcher.feed("one E"), matcher.feed("ND two"), matcher.found
    ('one ', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        if "" in self._stops:
            raise ValueError("stop: a stop string must not be empty")
        self._held = ""
        self.found = False
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """Take more text; return the text that cannot be part of a stop string. Empty after a hit."""
        if self.found:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        ends = [(at + len(stop), -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            end, negative_length, self.hit = min(ends)
            self.found, self._held = True, ""
            return text[: end + negative_length]
        held = max((len(overlap(text, stop)) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """The text has ended: return what was held back."""
        held, self._held = self._held, ""
        return held
