"""What suites share to ask, and to extract and compare answers. Extraction follows the published harnesses: the last
boxed expression of a mathematical answer, the letter after `Answer:` of a choice."""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

from dsv4.evals import math_process
from dsv4.evals.suite import Message

# the report's prompt for mathematics (section 5.3.1) for all modes but Pro-Max's
BOXED = "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
# simple-evals' prompt of GPQA, which most harnesses use for questions with choices
CHOICE = (
    "Answer the following multiple choice question. The last line of your response should be of the following "
    "format: 'Answer: $LETTER' (without quotes) where LETTER is one of {letters}. Think step by step before "
    "answering.\n\n{question}\n\n{choices}"
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"(?i)answer[ \t]*(?:is)?[ \t]*:?[ \t]*[$(*\\{]*(?:boxed\{|text\{)*\(?([A-Z])\b")


def asked(text: str) -> tuple[Message, ...]:
    """A conversation of one turn."""
    return ({"role": "user", "content": text},)


def choice_prompt(question: str, choices: Sequence[str]) -> str:
    """A question with its choices, as simple-evals asks it."""
    letters = LETTERS[: len(choices)]
    lines = "\n".join(f"{letter}) {text}" for letter, text in zip(letters, choices, strict=True))
    return CHOICE.format(letters=letters, question=question.strip(), choices=lines)


def choice_letter(text: str, count: int) -> str:
    """The letter that an answer gives last in the form `Answer: B`, of the first `count`; else one in a box; else
    ""."""
    letters = LETTERS[:count]
    found = [match[1].upper() for match in _LETTER.finditer(text)]
    boxed = re.sub(r"\\text|[{}()\s.$]", "", last_boxed(text))
    for letter in (*reversed(found), boxed.upper()):
        if len(letter) == 1 and letter in letters:
            return letter
    return ""


def last_boxed(text: str) -> str:
    """The content of the last \\boxed{...} whose braces close; "" if there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start:place].strip()
    return ""


def last_number(text: str) -> str:
    """The last number of a text, without signs of thousands; "" if there is none."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return found[-1].replace(",", "").rstrip(".") if found else ""


def normalised(text: str) -> str:
    """For comparing short answers: without case, accents, articles, punctuation at the ends, and more than one space
    at a time."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    plain = re.sub(r"\b(?:the|a|an)\b", " ", plain)
    return re.sub(r"\s+", " ", plain).strip(" .,;:!?'\"`*$()")


def same_number(right: str, found: str) -> bool:
    """Whether both are one number, in the forms 1,000, 0.5, 1/2, 50."""
    values = [_number(text) for text in (right, found)]
    return values[0] is not None and values[0] == values[1]


def same_math(right: str, found: str) -> bool:
    """Whether two mathematical expressions (LaTeX or plain) are equal: as texts, as numbers, else by math-verify in a
    process of its own, since some expressions take for ever. Raises ValueError without math-verify."""
    if not found.strip():
        return False
    if re.sub(r"[\s$]", "", right) == re.sub(r"[\s$]", "", found) or same_number(right, found):
        return True
    return math_process.equal(right, found)


def _number(text: str) -> Fraction | None:
    plain = re.sub(r"[\s$\\,]|\\text", "", text).rstrip(".%")
    if not re.fullmatch(r"[+-]?\d{1,400}(?:\.\d{1,400})?(?:/\d{1,400})?", plain) or ("." in plain and "/" in plain):
        return None
    return None if re.search(r"/0+$", plain) else Fraction(plain)
