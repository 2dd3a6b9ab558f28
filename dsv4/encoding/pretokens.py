"""The released rules that cut a text into words before its bytes are merged, and a function that cuts a long text
between two words.

The pieces of a text have the ids of the whole text if each cut is at a place where the rules cut in every context.
`pieces` uses these places: between a word and a blank before another word, between a line break and a letter, beside a
digit, and beside a Chinese or Japanese character, if the other side is of another kind; and inside a run of digits,
three, six, nine, ... digits behind its start.
"""

import re
from collections.abc import Iterator
from typing import Any

# in order: runs of up to three digits, runs of Chinese and Japanese, then words, marks and space
DIGITS_TAKEN = 3
DIGITS = rf"\p{{N}}{{1,{DIGITS_TAKEN}}}"
CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
PIECE = 1 << 16
# characters without any place to cut: such a text is one word, and takes a hundred times its size to encode
LONGEST_WORD = 1 << 20
_PLACES = re.compile(
    "(?<=[A-Za-z])(?= [A-Za-z])|(?<=\n)(?=[A-Za-z])"
    "|(?<=[0-9])(?=[\x00-/:-\x7f])|(?<=[\x00-/:-\x7f])(?=[0-9])"
    "|(?<=[一-龥])(?=[\x00-\x7f\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])"
    "|(?<=[\x00-\x7f\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])(?=[一-龥])"
)


def cuts_as_released(definition: dict[str, Any]) -> bool:
    """Whether a tokenizer.json uses these rules and nothing before or beside them."""
    steps = (definition.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    rules = [(step.get("pattern") or {}).get("Regex") for step in steps[:-1]]
    plain = all(step.get("behavior") == "Isolated" and not step.get("invert") for step in steps[:-1])
    last = steps[-1]
    bytes_only = last.get("type") == "ByteLevel" and not last.get("add_prefix_space") and not last.get("use_regex")
    as_it_is = definition.get("normalizer") in (None, {"type": "Sequence", "normalizers": []})
    return rules == [DIGITS, CJK, WORDS] and plain and bytes_only and as_it_is


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """`text` cut into pieces of about `size` characters, at places where the rules cut too.

    Raises ValueError for a text with LONGEST_WORD characters in which there is no such place.
    """
    begin = 0
    while len(text) - begin > size:
        end = _place_in_digits(text, begin, begin + size)
        if end is None:
            place = _PLACES.search(text, begin + size, begin + size + LONGEST_WORD)
            end = place.start() if place is not None else len(text)
        if end - begin > LONGEST_WORD:
            raise ValueError(
                f"text: {LONGEST_WORD:,} characters without a space, a line break or a digit are too long for a word"
            )
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]


def _place_in_digits(text: str, begin: int, most: int) -> int | None:
    """The last place up to `most` inside the run of digits there, None if there is no run of at least three.

    begin: a place where the rules cut.
    """
    run = begin + len(text[begin:most].rstrip("0123456789"))
    # the rules count the digits of all scripts
    starts_here = run == begin or text[run - 1].isascii()
    end = most - (most - run) % DIGITS_TAKEN
    return end if starts_here and end > run else None
