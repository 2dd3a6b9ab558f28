"""One policy that sorts letters and judges sorted letters: its first training, and its prompts.

An answer is right by a rule, `text`. The demonstrations are not all right, and the judge's first items lack one kind of
wrong answer (`twice`): so there is something to gain from a judge, and something that a judge can be cheated with.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from itertools import zip_longest
from string import ascii_lowercase
from typing import Any

from dsv4.encoding import Tokenizer
from dsv4.posttraining.chat import chat_prompt
from dsv4.posttraining.judge import BEST, judge_messages
from dsv4.posttraining.types import Effort, Prompt
from dsv4.training.documents import Document
from recipes.nano.items.mix import encode, said

RUBRIC = "It has each letter once. It is in order."
FEWEST, MOST = 4, 7  # letters of a question
HELD_OUT = 5  # one question of so many is never trained on
Letters = Sequence[str]


def swapped(rng: random.Random, right: Letters) -> list[str]:
    """Two neighbours have changed places."""
    i = rng.randrange(len(right) - 1)
    return [*right[:i], right[i + 1], right[i], *right[i + 2 :]]


def missing(rng: random.Random, right: Letters) -> list[str]:
    """One letter is left out."""
    i = rng.randrange(len(right))
    return [*right[:i], *right[i + 1 :]]


def other(rng: random.Random, right: Letters) -> list[str]:
    """A letter that was not asked stands in place of one, in order."""
    gone = rng.randrange(len(right))
    new = rng.choice([letter for letter in ascii_lowercase if letter not in right])
    return sorted([*right[:gone], *right[gone + 1 :], new])


def twice(rng: random.Random, right: Letters) -> list[str]:
    """One letter is there twice."""
    return sorted([*right, rng.choice(right)])


def mixed(rng: random.Random, right: Letters) -> list[str]:
    """The letters stand in any order."""
    return rng.sample(right, len(right))


def others(rng: random.Random, right: Letters) -> list[str]:
    """About half of the letters have become any others, each in its place."""
    return [rng.choice(ascii_lowercase) if rng.random() < 0.5 else letter for letter in right]


FAULTS: dict[str, Callable[[random.Random, Letters], list[str]]] = {
    "swapped": swapped, "missing": missing, "other": other, "twice": twice,
}  # fmt: skip
MANY = {"mixed": mixed, "others": others}  # mostly several faults: they teach to compare
SHOWN = ("swapped", "missing", "twice")  # in demonstrations of the answering role
JUDGED = ("swapped", "missing", "other", *MANY)  # in the first items of the judging role


def question(rng: random.Random, held_out: bool = False) -> tuple[str, list[str]]:
    """A question and its letters in order; one of `HELD_OUT` questions is held out, by its letters."""
    while True:
        letters = rng.sample(ascii_lowercase, rng.randint(FEWEST, MOST))
        if (zlib.crc32("".join(sorted(letters)).encode()) % HELD_OUT == 0) == held_out:
            return f"Sort {' '.join(letters)}", sorted(letters)


def answer(rng: random.Random, right: Letters, faults: Sequence[str], wrong: float) -> str:
    """An answer, wrong in that share."""
    return " ".join(right if rng.random() >= wrong else (FAULTS | MANY)[rng.choice(faults)](rng, right))


def judgement(right: Letters, given: Letters) -> str:
    """What the judging role is shown to say: the right letter beside the given one at each place, and the verdict. It
    goes on behind a fault, since a judge that always stopped there would see few places that differ."""
    pairs = zip_longest(right, given, fillvalue="-")
    places = " ".join(f"{ours} {theirs} {'same' if ours == theirs else 'no'}" for ours, theirs in pairs)
    return f"{places}\nVerdict: {BEST if list(right) == list(given) else 0}"


def document(rng: random.Random, codec: Tokenizer, judging: float = 0.6, wrong: float = 0.5) -> Document:
    """A conversation of either role. judging: share of the judge's. wrong: share of wrong answers, of what is
    demonstrated and of what the judge is shown."""
    asked, right = question(rng)
    if rng.random() < judging:
        text = answer(rng, right, JUDGED, wrong)
        messages = [
            *judge_messages(asked, text, RUBRIC),
            {"role": "assistant", "content": judgement(right, text.split())},
        ]
    else:
        text = answer(rng, right, SHOWN, wrong)
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": text}]
    tokens = encode(codec, messages, "chat")
    return Document(tokens, said(tokens, codec))


def prompt(
    rng: random.Random, tokenizer: Tokenizer, judged: bool = True, known: float = 0.25, held_out: bool = False
) -> Prompt:
    """A question to answer. judged: by the rubric, and for a share `known` of the questions the truth is there too;
    else by the rule alone. held_out: of the questions that training does not see."""
    asked, right = question(rng, held_out)
    task: dict[str, Any] = {"rubric": RUBRIC} if judged else {}
    if not judged or rng.random() < known:
        task |= {"verifier": "text", "answer": " ".join(right)}
    messages = [{"role": "user", "content": asked}]
    return chat_prompt(tokenizer, asked, messages, domain="letters", effort=Effort.NON_THINK, **task)
