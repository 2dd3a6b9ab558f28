"""JSON as the official service reads and writes it: integers have 64 bits, larger numbers become fractions.

Python's integers are unlimited and its fractions have other exponents, so the service's prompt differs in the last
characters of a number.
"""

import json
import re
from typing import Any

from dsv4.encoding.dialect import Dialect
from dsv4.encoding.dsml import to_json

LEAST, LARGEST = -(2**63), 2**64 - 1
INTEGER_DIGITS = 20
# the service reads no deeper; what is deeper is text to it
MOST_DEEP = 127
EXPONENT = re.compile(r"e(-?|\+)0*(\d+)$")


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object in `text`; None if the service does not accept it: invalid JSON (NaN, half of a surrogate pair),
    too deep, or another type."""
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_fraction, parse_constant=_refuse)
        if not isinstance(value, dict) or (text.count("[") + text.count("{") > MOST_DEEP and _depth(value) > MOST_DEEP):
            return None
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value


def number_json(value: Any, where: str, dialect: Dialect) -> str:
    """`value` as JSON; with the service's numbers in a dialect of the service. Raises ValueError naming `where`."""
    try:
        if not dialect.service or _plain(value):
            return to_json(value, where)
        return "".join(_pieces(value, dialect.padded_exponent))
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply") from error
    except OverflowError as error:
        raise ValueError(f"{where}: a number is too large for any fraction") from error


def _plain(value: Any) -> bool:
    """Whether Python writes every number in `value` as the service does."""
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    if isinstance(value, list):
        return all(map(_plain, value))
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return LEAST <= value <= LARGEST
    return not isinstance(value, float) or (value == value and (value == 0 or 1e-4 <= abs(value) < 1e300))


def _pieces(value: Any, padded: bool) -> list[str]:
    if isinstance(value, dict):
        parts: list[str] = []
        for key, part in value.items():
            parts += [", " if parts else "", json.dumps(key, ensure_ascii=False), ": ", *_pieces(part, padded)]
        return ["{", *parts, "}"]
    if isinstance(value, list):
        parts = []
        for part in value:
            parts += [", " if parts else "", *_pieces(part, padded)]
        return ["[", *parts, "]"]
    if isinstance(value, int) and not isinstance(value, bool) and not LEAST <= value <= LARGEST:
        value = float(value)
    if isinstance(value, float) and not padded:
        return [_short(value)]
    return [json.dumps(value, ensure_ascii=False)]


def _short(value: float) -> str:
    """1e-7 for 1e-07, and 0.00001 for 1e-05."""
    text = repr(value)
    if text.endswith("e-05"):
        sign, digits = ("-", text[1:-4]) if text[0] == "-" else ("", text[:-4])
        return f"{sign}0.0000{digits.replace('.', '')}"
    return EXPONENT.sub(r"e\1\2", text)


def _integer(text: str) -> int | float:
    if text == "-0":
        return -0.0
    if len(text) <= INTEGER_DIGITS and LEAST <= (value := int(text)) <= LARGEST:
        return value
    return _fraction(text)


def _fraction(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("number out of range")
    return value


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += any(isinstance(part, dict | list) for part in level)
        level = [
            inner
            for part in level
            if isinstance(part, dict | list)
            for inner in (part.values() if isinstance(part, dict) else part)
        ]
    return deepest
