"""Line breaks around the parts of an answer: the model writes them as markup, and clients get none of them.

Left out are those before the reasoning and before the content, and those before what ends a part: `</think>` or a call.
Those at the very end are text.
"""

from dsv4.answer.logprobs import Section


class LineBreaks:
    """Of one answer. continued: it goes on with a part that the prompt has begun, whose first breaks are text."""

    def __init__(self, *, continued: bool = False) -> None:
        self.section: Section | None = None
        self._continued, self._begun, self._held = continued, False, ""

    def leading(self, section: Section, text: str) -> str:
        """`text` of a section without the breaks that lead it."""
        if section is not self.section:
            self._begun = self._continued and self.section is None
            self.section, self._held = section, ""
        if not self._begun:
            text = text.lstrip("\n")
            self._begun = bool(text)
        return text

    def inner(self, text: str) -> str:
        """`text` of the section without breaks at its end, which wait for what follows, and with those that waited."""
        text = self._held + text
        body = text.rstrip("\n")
        self._held = text[len(body) :]
        return body

    def drop(self) -> None:
        """What follows is markup: the breaks that waited belong to it."""
        self._held = ""

    def last(self) -> str:
        """Nothing follows: the breaks that waited are text."""
        held, self._held = self._held, ""
        return held
