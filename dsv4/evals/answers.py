"""What suites share to ask, and to extract and compare answers. Extraction follows the published harnesses: the last
boxed expression of a mathematical answer, the letter after `Answer:` of a choice."""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

from dsv4.evals import math_process
from dsv4.evals.suite import Answer, Item, Message, ModelGrader, Score

# the report's prompt for mathematics (section 5.3.1) for all modes but Pro-Max's
BOXED = "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
# the report's prompt for Pro-Max (the same section)
PROOF = (
    "Solve the following problem. The problem may ask you to prove a statement, or ask for an answer. If finding an "
    "answer is required, you should come up with the answer, and your final solution should also be a rigorous proof "
    "of that answer being valid.\n\n{question}"
)
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


def number(text: str) -> Fraction | None:
    """The number that a text is, in the forms 1,000, 0.5, 1/2, 50; None if it is none."""
    plain = re.sub(r"[\s$\\,]|\\text", "", text).rstrip(".%")
    if not re.fullmatch(r"[+-]?\d{1,400}(?:\.\d{1,400})?(?:/\d{1,400})?", plain) or ("." in plain and "/" in plain):
        return None
    return None if re.search(r"/0+$", plain) else Fraction(plain)


def same_text(right: str, found: str) -> bool:
    """Whether two short answers are one text."""
    return bool(normalised(right)) and normalised(right) == normalised(found)


def same_math(right: str, found: str) -> bool:
    """Whether two mathematical expressions (LaTeX or plain) are equal: as texts, as numbers, else by math-verify in a
    process of its own, since some expressions take for ever. Raises ValueError without math-verify."""
    if not found.strip():
        return False
    if re.sub(r"[\s$]", "", right) == re.sub(r"[\s$]", "", found):
        return True
    numbers = [number(text) for text in (right, found)]
    if None not in numbers:
        return numbers[0] == numbers[1]
    return math_process.equal(right, found)


def boxed_math(item: Item, answer: Answer) -> Score:
    """The scorer of mathematics: the last box against the target."""
    found = last_boxed(answer.content)
    return Score(float(same_math(item.target, found)), found, "" if found else "no box")


def chosen_letter(item: Item, answer: Answer) -> Score:
    """The scorer of choices: the letter against the target. `item.data["choices"]` says how many there are."""
    found = choice_letter(answer.content, item.data["choices"])
    return Score(float(found == item.target), found, "" if found else "no letter")


def model_grades(kind: str) -> ModelGrader:
    """Grading by a model, for short answers. kind: of question, in words. The question is `item.data["question"]`."""

    def prompt(item: Item, answer: Answer) -> str:
        return (
            f"Grade an answer to a {kind}. Compare only the final answer with the reference: ignore style, and accept "
            "another form of the same value or name. More than one final answer, or none, is not correct.\n\n"
            f"Question:\n{item.data['question']}\n\nReference answer:\n{item.target}\n\nAnswer to grade:\n"
            f"{answer.content}\n\nExplain in one sentence, then write a last line `Verdict: CORRECT`, "
            "`Verdict: INCORRECT`, or `Verdict: NOT ATTEMPTED` where the answer declines."
        )

    return ModelGrader(prompt, _verdict)


def _verdict(said: str) -> Score:
    found = re.findall(r"Verdict:\W*(CORRECT|INCORRECT|NOT ATTEMPTED)", said)
    verdict = found[-1] if found else "no verdict"
    return Score(float(verdict == "CORRECT"), verdict, said, {"attempted": float(verdict != "NOT ATTEMPTED")})
