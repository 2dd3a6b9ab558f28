"""The thirteen tasks of RULER (Hsieh et al. 2024, arXiv 2404.06654), generated here at any length.

Questions are worded as published, with the start of the answer at the end of the prompt, and the published numbers of
needles, hops, words and repetitions. The haystacks are ours: sentences of `long_prompts` for the published essays, one
sentence again and again for its noise. Questions over documents (SQuAD, HotpotQA) are asked of invented ones: a fact of
one document (qa_1), and a fact that takes two (qa_2).
"""

import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from dsv4.evals.long_prompts import insert, sentences
from dsv4.evals.words import ADJECTIVES, THINGS, distinct, letters, name, number, pair, uuid

NOISE = "The road is long. The water is cold. The night is quiet. We walk on. Then we come home."
_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_FIND = (
    "{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. I will quiz you "
    "about the {kind} afterwards.\n{text}\nWhat {are_all} the special magic {kind} for {query} mentioned in the "
    "provided text? The special magic {kind} for {query} mentioned in the provided text {are}"
)
_TRACK = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{text}\nQuestion: Find "
    "all variables that are assigned the value {value} in the text above. Answer: According to the chain(s) of "
    "variable assignment in the text above, {count} variables are assigned the value {value}, they are: "
)
_COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{text}\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 "
    "words that appear most often in the list are:"
)
_FREQUENT = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. {text}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text? Answer: According to the coded text above, the three most "
    "frequently appeared words are:"
)
_ONLY = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
_DOCUMENTS = _ONLY + "\n\nThe following are given documents.\n\n{text}\n\n" + _ONLY + "\n\nQuestion: {question} Answer:"


@dataclass(frozen=True, slots=True)
class RulerQuestion:
    """answers: all must be named; for `any_of`, one."""

    prompt: str
    answers: tuple[str, ...]
    any_of: bool = False


@dataclass(frozen=True, slots=True)
class _Needles:
    """haystack: noise, essay or needles. key, value: word, number or uuid. keys in the text, values of each, queries
    asked for."""

    haystack: str
    key: str = "word"
    value: str = "number"
    keys: int = 1
    values: int = 1
    queries: int = 1


_KINDS = {"word": ("words", pair), "number": ("numbers", number), "uuid": ("uuids", uuid)}
_NEEDLE_TASKS = {
    "niah_single_1": _Needles("noise"),
    "niah_single_2": _Needles("essay"),
    "niah_single_3": _Needles("essay", value="uuid"),
    "niah_multikey_1": _Needles("essay", keys=4),
    "niah_multikey_2": _Needles("needles"),
    "niah_multikey_3": _Needles("needles", key="uuid", value="uuid"),
    "niah_multivalue": _Needles("essay", values=4),
    "niah_multiquery": _Needles("essay", keys=4, queries=4),
}


def _find_needles(task: _Needles, size: int, seed: str) -> RulerQuestion:
    chance, hay = random.Random(seed), random.Random(f"{seed}/hay")
    plural, value_of = _KINDS[task.value]
    key_of = _KINDS[task.key][1]
    keys = distinct(lambda: key_of(chance), task.keys)
    values = {key: distinct(lambda: value_of(chance), task.values) for key in keys}
    needles = [_NEEDLE.format(kind=plural, key=key, value=value) for key in keys for value in values[key]]
    chance.shuffle(needles)
    asked = chance.sample(keys, task.queries)
    if task.haystack == "noise":
        parts = [NOISE] * size
    elif task.haystack == "essay":
        parts = sentences(size, chance.randrange(2**32))
    else:  # other needles, of other keys
        parts = []
        while len(parts) < size:
            # a pair of words could be a key that is asked for
            key = key_of(hay) if task.key == "uuid" else f"{pair(hay)}-{len(parts)}"
            parts.append(_NEEDLE.format(kind=plural, key=key, value=value_of(hay)))
    text = ("\n" if task.haystack != "essay" else " ").join(insert(parts, needles, hay))
    one = task.queries * task.values == 1
    words = ("A", plural[:-1], "is", "is") if one else ("Some", plural, "are", "are all")
    query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    some, kind, are, are_all = words
    prompt = _FIND.format(some=some, kind=kind, are=are, are_all=are_all, text=text, query=query)
    return RulerQuestion(prompt, tuple(value for key in asked for value in values[key]))


def _track_variables(size: int, seed: str, hops: int = 4) -> RulerQuestion:
    """One chain of assignments, and a short one before it as an example, as published."""
    example = _chain(f"{seed}/example", 5, hops)
    asked = _chain(seed, size, hops)
    shown = f"{example.prompt}{' '.join(example.answers)}"
    return RulerQuestion(f"{shown}\n\n{asked.prompt}", asked.answers)


def _chain(seed: str, size: int, hops: int) -> RulerQuestion:
    chance = random.Random(seed)
    names = distinct(lambda: letters(chance, 5, string.ascii_uppercase), hops + 1)
    value = number(chance, 5)
    steps = [f"VAR {names[0]} = {value}"]
    steps += [f"VAR {later} = VAR {earlier}" for earlier, later in pairwise(names)]
    text = "\n".join(insert([NOISE] * size, steps, random.Random(f"{seed}/places")))
    return RulerQuestion(_TRACK.format(text=text, value=value, count=len(names)), tuple(names))


def _common_words(size: int, seed: str) -> RulerQuestion:
    """Ten words 30 times each, others 3 times; before it an example of 3 times and once, as published."""
    chance = random.Random(seed)
    vocabulary = [f"{first}{second}" for first in ADJECTIVES for second in THINGS]
    chance.shuffle(vocabulary)
    # the list of words ends; more are made of three
    while len(vocabulary) < 30 + size:
        vocabulary.append(f"{chance.choice(ADJECTIVES)}{chance.choice(ADJECTIVES)}{len(vocabulary)}")
    example = _word_list(vocabulary[:10], vocabulary[10:20], 3, 1, seed)
    asked = _word_list(vocabulary[20:30], vocabulary[30 : 30 + size], 30, 3, f"{seed}/asked")
    numbered = " ".join(f"{place}. {word}" for place, word in enumerate(vocabulary[:10], start=1))
    return RulerQuestion(f"{example} {numbered}\n\n{asked}", tuple(vocabulary[20:30]))


def _word_list(common: list[str], others: list[str], often: int, seldom: int, seed: str) -> str:
    words = common * often + others * seldom
    random.Random(seed).shuffle(words)
    return _COMMON.format(text=" ".join(f"{place}. {word}" for place, word in enumerate(words, start=1)))


def _frequent_words(size: int, seed: str, alpha: float = 2.0) -> RulerQuestion:
    """Coded words with the frequencies of a zeta distribution; the most frequent is replaced by dots. The vocabulary
    is a fiftieth of the text, as published."""
    chance = random.Random(seed)
    total = 60 + 10 * size
    vocabulary = distinct(lambda: letters(chance, 6), max(10, total // 50))
    weights = [1 / (place**alpha) for place in range(1, len(vocabulary) + 1)]
    whole = sum(weights)
    words: list[str] = []
    for place, word in enumerate(vocabulary):
        # counts fall strictly among the first four, so that the three are beyond doubt
        count = max(int(total * weights[place] / whole), 5 - place if place < 4 else 1)
        words += ["...." if place == 0 else word] * count
    chance.shuffle(words)
    return RulerQuestion(_FREQUENT.format(text=" ".join(words)), tuple(vocabulary[1:4]))


def _ask_documents(size: int, seed: str, hops: int) -> RulerQuestion:
    chance, hay = random.Random(seed), random.Random(f"{seed}/hay")
    people = distinct(lambda: f"{name(chance)} {name(chance)}", 2)
    town = name(chance)
    if hops == 1:
        documents = [f"{people[0]}\n{people[0]} was born in the town of {town}. {NOISE}"]
        question = f"In which town was {people[0]} born?"
    else:
        documents = [
            f"{people[0]}\n{people[0]} was the only teacher of {people[1]}. {NOISE}",
            f"{people[1]}\n{people[1]} wrote nine books. {NOISE}",
            f"The school of {people[0]}\nThe school of {people[0]} lies in the town of {town}. {NOISE}",
        ]
        question = f"In which town lies the school of the teacher of {people[1]}?"
    others = []
    while len(others) < size:
        person, other = f"{name(hay)} {name(hay)}", f"{name(hay)} {name(hay)}"
        if {person, other} & {*people}:
            continue
        kind = hay.randrange(3)
        text = (
            f"{person} was born in the town of {name(hay)}.",
            f"{person} was the only teacher of {other}.",
            f"The school of {person} lies in the town of {name(hay)}.",
        )[kind]
        others.append(f"{person}\n{text} {NOISE}")
    chance.shuffle(documents)
    mixed = insert(others, documents, hay)
    text = "\n\n".join(f"Document {place}:\n{document}" for place, document in enumerate(mixed, start=1))
    return RulerQuestion(_DOCUMENTS.format(text=text, question=question), (town,), any_of=True)


TASKS: dict[str, Callable[[int, str], RulerQuestion]] = {
    **{
        task: lambda size, seed, needles=needles: _find_needles(needles, size, seed)
        for task, needles in _NEEDLE_TASKS.items()
    },
    "vt": _track_variables,
    "cwe": _common_words,
    "fwe": _frequent_words,
    "qa_1": lambda size, seed: _ask_documents(size, seed, 1),
    "qa_2": lambda size, seed: _ask_documents(size, seed, 2),
}


def share_named(answer: str, answers: tuple[str, ...], *, any_of: bool) -> float:
    """RULER's grades: the share of the answers that the text names, or whether it names one; case does not count."""
    named = [wanted.casefold() in answer.casefold() for wanted in answers]
    return float(any(named)) if any_of else sum(named) / len(named)
