"""Rule-based rewards: a final answer compared with what is expected, by the name of the rule.

A verifier takes the text after the thought and returns a reward between 0 and 1. The text comes from a model that is
rewarded for whatever passes, so it is hostile: a verifier never raises on it, evaluates nothing of it, and takes time
in proportion to at most LONGEST characters. What it cannot read is worth 0.0. An `expected` of the wrong form, or one
that contradicts itself, is our own mistake and raises TypeError or ValueError.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

LONGEST = 4096  # characters of an answer; a longer one is worth 0.0
DIGITS = 40  # of a number; a longer one is no number
DEPTH = 32  # of parentheses
Verifier = Callable[[str, Any], float]

# a run that starts with a digit; what is no plain number (3rd, 1e9, 1.2.3) must not pass as one
_RUN = re.compile(r"(?<![0-9A-Za-z_.])[0-9][0-9A-Za-z_.,/]*")
_PLAIN = re.compile(r"(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?")
_LAST = re.compile(r"[0-9)\]][ \t]*$")
_EXPRESSION = re.compile(r"[0-9+\-*() \t]+")
_TOKEN = re.compile(r"[0-9]+|[+\-*()]")
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "＋": "+"})


def reward(verifier: str, answer: str, expected: Any) -> float:
    """The reward of a final answer, 0.0 to 1.0. Raises ValueError if there is no such verifier."""
    if verifier not in VERIFIERS:
        raise ValueError(f"verifier: {verifier!r} is unknown; one of {', '.join(VERIFIERS)}")
    return VERIFIERS[verifier](answer, expected)


def check_expected(verifier: str, expected: Any) -> None:
    """Raise ValueError where `expected` has not the form that the verifier compares with, where no answer could be
    right or the empty one would be, or there is no such verifier. Whether numbers can reach a target is not tried."""
    try:
        if reward(verifier, "", expected):
            raise ValueError("an empty answer would be right")
        if not all(reward(verifier, answer, expected) for answer in _right(verifier, expected)):
            raise ValueError("no answer could be right")
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"the verifier {verifier} cannot compare with {expected!r:.200} ({what})") from error


def number(answer: str, expected: int | float) -> float:
    """1.0 if the last number of the answer is the expected one; thousands may be set apart by commas."""
    found, wanted = _numbers(answer), _exact(expected)
    return float(bool(found) and found[-1] == wanted)


def text(answer: str, expected: str) -> float:
    """1.0 if both are the same but for case, spaces and punctuation at the ends."""
    return float(len(answer) <= LONGEST and _plain(answer) == _plain(expected))


def order(answer: str, expected: Sequence[int]) -> float:
    """1.0 if the numbers of the answer are the expected ones in that order, and no others. `1,234` is two numbers."""
    wanted = [_exact(number) for number in _several(expected)]
    if len(answer) > LONGEST:
        return 0.0
    return float(_numbers(answer.replace(",", ", ")) == wanted)


def expression(answer: str, expected: Mapping[str, Any]) -> float:
    """1.0 if the answer is an expression over + - * and parentheses that uses each of `numbers` once and has the value
    `target`. The last line that is not empty counts; a lead up to a colon and an end `= target` are allowed."""
    numbers = [_whole("numbers", number) for number in _several(expected["numbers"])]
    target = _whole("target", expected["target"])
    if not numbers or min(numbers) < 0:
        raise ValueError(f"numbers must be one or more whole numbers of at least 0, got {numbers}")
    if len(answer) > LONGEST or not answer.strip():
        return 0.0
    line = answer.strip().splitlines()[-1].translate(_SIGNS).rpartition(":")[2].strip().removesuffix(".")
    left, equals, right = line.partition("=")
    if equals and right.strip() != str(target):
        return 0.0
    value = _evaluate(left)
    return float(value is not None and value[0] == target and Counter(value[1]) == Counter(numbers))


def contains(answer: str, expected: str | Sequence[str]) -> float:
    """1.0 if the answer holds the expected words, or each of several, as whole words; case does not count."""
    wanted = [expected] if isinstance(expected, str) else _several(expected)
    if not wanted:
        raise ValueError("one or more texts are expected")
    if len(answer) > LONGEST:
        return 0.0
    words = f" {' '.join(_words(answer))} "
    return float(all(f" {' '.join(_words(part))} " in words for part in wanted))


def one_of(answer: str, expected: Sequence[str]) -> float:
    """1.0 if the answer is one of the expected texts, but for case, spaces and punctuation at the ends."""
    if not _several(expected):
        raise ValueError("one or more texts are expected")
    return max(text(answer, each) for each in expected)


def choice(answer: str, expected: Mapping[str, Any]) -> float:
    """1.0 if the answer names `right` and none of the other `options`, as whole words; case does not count. Where an
    option is part of a longer one, the longer one is meant."""
    right = expected["right"]
    options: list[str] = list(_several(expected["options"]))
    if right not in options:
        raise ValueError(f"right must be one of options {options!r:.200}, got {right!r:.200}")
    if len(answer) > LONGEST:
        return 0.0
    words, named = f" {' '.join(_words(answer))} ", set()
    for option in sorted(options, key=len, reverse=True):
        wanted = f" {' '.join(_words(option))} "
        if wanted in words:
            named.add(option)
            words = words.replace(wanted, " / ")
    return float(named == {right})


VERIFIERS: dict[str, Verifier] = {
    "number": number, "text": text, "order": order, "expression": expression, "contains": contains, "choice": choice,
    "one_of": one_of,
}  # fmt: skip


def _right(verifier: str, expected: Any) -> list[str]:
    """Answers that have to be right; none where they are not known without a search."""
    match verifier:
        case "number":
            return [_digits(_exact(expected))]
        case "order":
            # a sign behind a number and a space would be the operator
            return [", ".join(_digits(_exact(number)) for number in expected)]
        case "contains":
            return [expected if isinstance(expected, str) else " ".join(expected)]
        case "choice":
            return [expected["right"]]
        case "one_of":
            return list(expected)
        case "text":
            return [expected]
    return []


def _several(expected: Any) -> Any:
    if isinstance(expected, str | Mapping):
        raise TypeError(f"a list is expected, got {expected!r:.200}")
    return expected


def _exact(expected: Any) -> Fraction:
    """A number as it is written: 0.1 is a tenth, which no binary fraction is. Raises ValueError for anything else."""
    written = str(expected).strip()
    if isinstance(expected, str) and not _PLAIN.fullmatch(written.removeprefix("-")):
        raise ValueError(f"a number is expected, got {expected!r:.200}")
    return Fraction(written.replace(",", ""))


def _whole(name: str, expected: Any) -> int:
    value = _exact(expected)
    if value.denominator != 1 or abs(value) >= 10**DIGITS:
        raise ValueError(f"{name} must be whole and have at most {DIGITS} digits, got {expected!r:.200}")
    return int(value)


def _digits(value: Fraction) -> str:
    """A number as an answer would have it; empty where it has no end or is too long."""
    places = next((n for n in range(DIGITS) if 10**n % value.denominator == 0), None)
    if places is None or abs(value) >= 10**DIGITS:
        return ""
    digits = str(abs(int(value * 10**places))).rjust(places + 1, "0")
    point = len(digits) - places
    return f"{'-' if value < 0 else ''}{digits[:point]}{'.' if places else ''}{digits[point:]}"


def _numbers(answer: str) -> list[Fraction | None]:
    """The numbers in the order of the text; None for a run of digits and letters that is no plain number."""
    if len(answer) > LONGEST:
        return []
    answer = answer.translate(_SIGNS)
    found: list[Fraction | None] = []
    for match in _RUN.finditer(answer):
        run = match.group().rstrip(".,")
        if not _PLAIN.fullmatch(run) or len(run) > DIGITS:
            found.append(None)
            continue
        value = Fraction(run.replace(",", ""))
        start = match.start()
        # after a number or a closing bracket it is the operator
        signed = start > 0 and answer[start - 1] == "-" and not _LAST.search(answer[max(0, start - 40) : start - 1])
        found.append(-value if signed else value)
    return found


def _words(answer: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", answer).casefold())


def _plain(answer: str) -> str:
    folded = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    return folded.strip(" .!?,;:'\"*`")


def _evaluate(source: str) -> tuple[int, list[int]] | None:
    """The value of an expression and the numbers in it; None if it is none, too deep or too large.

    Two stacks (values, operators): no recursion, so depth costs nothing but its limit.
    """
    if not _EXPRESSION.fullmatch(source) or not source.strip():
        return None
    values: list[int] = []
    operators: list[str] = []
    used: list[int] = []
    wants_value = True
    for token in _TOKEN.findall(source):
        if token == "(":
            if not wants_value or operators.count("(") >= DEPTH:
                return None
            operators.append(token)
        elif token[0] in "0123456789":
            if not wants_value or len(token) > DIGITS:
                return None
            values.append(int(token))
            used.append(int(token))
            wants_value = False
        elif wants_value:
            return None
        elif token == ")":
            if not _reduce(values, operators, 0) or not operators:
                return None
            operators.pop()
        else:
            if not _reduce(values, operators, _RANK[token]):
                return None
            operators.append(token)
            wants_value = True
    if wants_value or "(" in operators or not _reduce(values, operators, 0):
        return None
    return values[0], used


_RANK = {"+": 1, "-": 1, "*": 2}


def _reduce(values: list[int], operators: list[str], rank: int) -> bool:
    """Apply the operators on top that bind at least as strongly; False if a value gets too large."""
    while operators and operators[-1] != "(" and _RANK[operators[-1]] >= rank:
        sign, y, x = operators.pop(), values.pop(), values.pop()
        values.append(x + y if sign == "+" else x - y if sign == "-" else x * y)
        if abs(values[-1]) >= 10**DIGITS:
            return False
    return True
