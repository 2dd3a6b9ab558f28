"""Line breaks around the parts of an answer: the model emits them as markup, and clients do not get them.

Breaks before the reasoning, before the content, and before the end of a part (`</think>` or a call) are left out.
Breaks at the very end of an answer are text.
"""

from dsv4.answer.logprobs import Section


class LineBreaks:
    """The line breaks of one answer. continued: the answer continues a part that the prompt has begun, so its first
    breaks are text."""

    def __init__(self, *, continued: bool = False) -> None:
        self.section: Section | None = None
        self._continued, self._begun, self._held = continued, False, ""

    def passes(self, section: Section) -> bool:
        """Whether a text of `section` that does not end in a break is neither cut nor joined to breaks before it."""
        return self._begun and section is self.section and not self._held

    def leading(self, section: Section, text: str) -> str:
        """`text` of a section without its leading breaks."""
        if section is not self.section:
            self._begun = self._continued and self.section is None
            self.section, self._held = section, ""
        if not self._begun:
            text = text.lstrip("\n")
            self._begun = bool(text)
        return text

    def inner(self, text: str) -> str:
        """`text` of the section, after the breaks held back before it and without the breaks at its end, which are held
        back."""
        text = self._held + text
        body = text.rstrip("\n")
        self._held = text[len(body) :]
        return body

    def drop(self) -> None:
        """Markup follows: the breaks that were held back belong to it."""
        self._held = ""

    def last(self) -> str:
        """Nothing follows: the breaks that were held back are text."""
        held, self._held = self._held, ""
        return held
