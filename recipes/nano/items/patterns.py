"""Wordings from patterns: `[a|b]` are alternatives, which may be nested, `<name>` is a phrase that has a name, and
`{name}` is a word, or a text with words again, of the list of that name; `{name2}` is another one of it."""

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

_PHRASE = re.compile(r"<(\w+)>")
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Parts in a row; each is a text, or the alternatives for this place."""

    parts: "tuple[str | tuple[Pattern, ...], ...]"

    @property
    def size(self) -> int:
        """How many texts it has; equal ones count as often as they come."""
        return math.prod(1 if isinstance(part, str) else sum(one.size for one in part) for part in self.parts)

    def draw(self, rng: random.Random) -> str:
        """One text; every alternative of a place is as likely, however many texts it has itself."""
        return _tidy(self._draw(rng))

    def _draw(self, rng: random.Random) -> str:
        return "".join(part if isinstance(part, str) else rng.choice(part)._draw(rng) for part in self.parts)

    def texts(self) -> list[str]:
        """All texts, each once; words in braces stay."""
        return list(dict.fromkeys(map(_tidy, self._texts())))

    def _texts(self) -> Iterator[str]:
        places = [
            [part] if isinstance(part, str) else [text for one in part for text in one._texts()] for part in self.parts
        ]
        return map("".join, product(*places))


def _tidy(text: str) -> str:
    return re.sub(" ([,.?])", r"\1", " ".join(text.split()))


def parse(pattern: str, phrases: Mapping[str, str] | None = None) -> Pattern:
    """The pattern of a text. A line break in it and the blanks that follow do not count.

    Raises ValueError for brackets that do not match, KeyError for a phrase that is not there."""
    text = pattern
    while _PHRASE.search(text):
        text = _PHRASE.sub(lambda m: f"[{(phrases or {})[m[1]]}]", text)
    text = re.sub(r"\n\s*", "", text)
    made, end = _sequence(text, 0)
    if end != len(text):
        raise ValueError(f"pattern {pattern!r}: {text[end]!r} outside of brackets")
    return made


def _sequence(text: str, at: int) -> tuple[Pattern, int]:
    """The parts from `at` to the next `|` or `]` of this level, and where that is."""
    parts: list[str | tuple[Pattern, ...]] = []
    while at < len(text) and text[at] not in "|]":
        if text[at] == "[":
            options, at = _choice(text, at + 1)
            parts.append(options)
        else:
            end = next((i for i in range(at, len(text)) if text[i] in "[|]"), len(text))
            parts.append(text[at:end])
            at = end
    return Pattern(tuple(parts)), at


def _choice(text: str, at: int) -> tuple[tuple[Pattern, ...], int]:
    """All alternatives up to the closing bracket, and where it ends."""
    options: list[Pattern] = []
    while True:
        made, at = _sequence(text, at)
        options.append(made)
        if at == len(text):
            raise ValueError(f"pattern {text!r}: a bracket is not closed")
        if text[at] == "]":
            return tuple(options), at + 1
        at += 1


_parsed = lru_cache(maxsize=1000)(parse)


def text_of(rng: random.Random, pattern: str) -> str:
    """One text of a pattern without phrases. Patterns that come again are not parsed again."""
    return _parsed(pattern).draw(rng)


def slots(text: str) -> list[str]:
    """The names in braces, each once."""
    return list(dict.fromkeys(_SLOT.findall(text)))


def fill(rng: random.Random, text: str, lists: Mapping[str, Sequence[str]], words: dict[str, str]) -> str:
    """The text with a drawn word for each name in braces. words: those that are drawn already; gets the new ones."""
    for name in slots(text):
        if name not in words:
            words[name] = fill(rng, rng.choice(lists[name.rstrip("23")]), lists, {})
    return _SLOT.sub(lambda m: words[m[1]], text)
