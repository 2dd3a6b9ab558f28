"""Assigns tokens to the parts of an answer, so that log-probabilities are reported with their part."""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from dsv4.encoding import Tokenizer
from dsv4.generation import TokenLogprobs


class Section(StrEnum):
    """The two parts of an answer that are text; named as the field of the message."""

    REASONING = "reasoning_content"
    CONTENT = "content"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A sampled token of one section with its log-probabilities."""

    section: Section
    token: int
    logprobs: TokenLogprobs


class LogprobTrack:
    """Holds tokens back until their text is emitted, and drops tokens whose text is never emitted.

    The text of the records joined is the text of the section, except at a token that only partly belongs to
    it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._controls = tokenizer.controls
        self._pending: list[tuple[int, TokenLogprobs]] = []
        self._content: deque[tuple[int, TokenRecord]] = deque()  # (first byte, record)
        self._assigned = 0  # bytes of content that have records
        self._given = 0  # bytes of content given to the client

    def sampled(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """A token was sampled; control tokens are never part of a text."""
        if logprobs is not None and token not in self._controls:
            self._pending.append((token, logprobs))

    def parsed(self, section: Section | None) -> list[TokenRecord]:
        """The tokens so far turned out to be text of `section`, or markup (None). Gives finished records.

        Records of content wait for `given`, since a stop string may still take their text away.
        """
        pending, self._pending = self._pending, []
        if section is None:
            return []
        records = [TokenRecord(section, token, logprobs) for token, logprobs in pending]
        if section is Section.REASONING:
            return records
        for record in records:
            self._content.append((self._assigned, record))
            self._assigned += self._size(record)
        return []

    def skip(self, count: int) -> None:
        """This many bytes of the content parsed last are not emitted; a token that consists of such bytes only has no
        record."""
        self._given += count
        while self._content and self._content[0][0] + self._size(self._content[0][1]) <= self._given:
            self._content.popleft()

    def _size(self, record: TokenRecord) -> int:
        return len(self._tokenizer.token_bytes(record.token))

    def unrecorded(self, text: str) -> None:
        """`text` of the content is emitted, and none of its tokens has log-probabilities."""
        self._given += len(text) if text.isascii() else len(text.encode())

    def given(self, text: str) -> list[TokenRecord]:
        """`text` of the content is emitted: the records of its tokens."""
        self._given += len(text.encode())
        records: list[TokenRecord] = []
        while self._content and self._content[0][0] < self._given:
            records.append(self._content.popleft()[1])
        return records
