"""Comparing, sorting, extremes of a list and counting."""

import itertools
import random

from recipes.nano.items import steps
from recipes.nano.items.arithmetic import solved, whole
from recipes.nano.items.item import Item
from recipes.nano.items.words import ANY

LARGER = (
    "Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?", "{a} or {b}, which is {w}?",
    "which is {w}: {a} or {b}", "Which one is {w}, {a} or {b}?", "What is {w}, {a} or {b}?",
)  # fmt: skip
TRUTHS = (
    "Is {a} {w} than {b}?", "is {a} {w} than {b}", "Is it true that {a} is {w} than {b}?",
    "{a} is {w} than {b}, right?",
)  # fmt: skip
EQUAL = ("Are {a} and {b} equal?", "Is {a} the same number as {b}?", "Does {a} equal {b}?", "are {a} and {b} the same")
PARITIES = ("Is {a} {w}?", "is {a} {w}", "Is {a} an {w} number?", "Is the number {a} {w}?", "{a} is {w}, right?")
SORTS = (
    "Sort {}.", "Sort these numbers: {}.", "Put {} in order.", "Sort {}", "sort: {}", "Order these numbers: {}.",
    "Sort {} in ascending order.", "Sort {} from smallest to largest.", "Arrange {} from low to high.",
    "Could you put {} in order?", "can you sort {} for me",
)  # fmt: skip
SORTS_DOWN = (
    "Sort {} in descending order.", "Sort {} from largest to smallest.", "Arrange {} from high to low.",
    "Put {} in order, largest first.", "Sort these numbers, largest first: {}.",
)  # fmt: skip
EXTREMES = (
    "What is the {w} of {l}?", "Which number is the {w}: {l}?", "Find the {w} number in {l}.", "{w} of {l}?",
    "Give me the {w} of these numbers: {l}.",
)  # fmt: skip
LETTERS = (
    'How many times does the letter {x} occur in "{w}"?', "How many {x} are in {w}?", "Count the letter {x} in {w}.",
    "How often is {x} in the word {w}?", "how many {x}'s are in {w}", "How many {x}'s are there in {w}?",
    "How many times does {x} appear in {w}?", "how many {x} does {w} have", "How many {x}'s does {w} have?",
    "How many letters {x} are in {w}?", "number of {x} in {w}",
)  # fmt: skip
LENGTHS = (
    "How many letters has {w}?", "How many letters are in {w}?", "Count the letters of {w}.",
    "How many letters does {w} have?", "how many letters in {w}", "How long is the word {w}?",
    "How many letters are there in the word {w}?", "Count the letters in {w}",
)  # fmt: skip
WORD_COUNTS = (
    'How many words are in "{}"?', "Count the words: {}", "How many words: {}", "how many words does this have: {}",
)  # fmt: skip
COUNTS = ("How many numbers are in this list: {}?", "Count these numbers: {}.", "How many numbers do you see: {}?")
EVENS = (
    "How many of these are {w}: {l}?", "How many {w} numbers are in {l}?", "Count the {w} numbers: {l}.",
    "how many {w} numbers: {l}",
)  # fmt: skip
WORDS = (
    "apple", "banana", "berry", "letter", "window", "summer", "winter", "kitten", "rabbit", "pepper", "cheese",
    "coffee", "butter", "little", "yellow", "purple", "orange", "green", "garden", "forest", "river", "mirror",
    "teacher", "doctor", "farmer", "paper", "pencil", "school", "street", "bottle", "basket", "carrot", "potato",
    "tomato", "onion", "lemon", "melon", "cherry", "strawberry", "book", "door", "moon", "star", "tree", "bee",
    "egg", "ball", "bell", "hill", "grass", "glass", "mouse", "horse", "sheep", "goose", "parrot", "turtle",
    "dragon", "puzzle", "cookie", "balloon", "hammer", "ladder", "needle", "rocket", "planet", "island", "village",
    "castle", "music", "number", "seven", "eleven", "thirteen",
)  # fmt: skip
# words of a sentence to count: also those that facts are made of. None comes twice, since copying goes on behind the
# word before, and two of a kind go on differently
SENTENCE_WORDS = list(dict.fromkeys([*WORDS, *ANY]))


def _said(task: str, question: str, reply: str, thought: str, check: str, answer: object, verifier: str) -> Item:
    assistant = {"role": "assistant", "content": reply, "reasoning_content": thought}
    deep = f"{thought}\ncheck {check}"
    return Item("math", task, ({"role": "user", "content": question}, assistant), answer, verifier, deep=deep)


def _pair(rng: random.Random) -> tuple[int, int]:
    """Two numbers of one to five digits, often of the same length and with the same first digits."""
    a = whole(rng, 5)
    size = len(str(a))
    kept = 10 ** rng.randrange(1, size + 1)
    b = rng.choice((whole(rng, 5), a // kept * kept + rng.randrange(kept)))
    if rng.random() < 0.3:
        b = int("".join(rng.sample(str(a), size)))
    return a, b


def make_comparison(rng: random.Random) -> Item:
    """Which of two numbers is larger or smaller, or whether a comparison holds.

    The last line of the thought leaves one small step to the answer: both numbers, the larger one first, or the sign
    that the question asks for beside the sign that holds."""
    a, b = _pair(rng)
    kind = rng.random()
    if kind >= 0.4:
        b = b if a != b else a + 1
        large = rng.random() < 0.6
        word = rng.choice(("larger", "greater", "bigger") if large else ("smaller",))
        winner, ordered = max(a, b) if large else min(a, b), f"{max(a, b)}>{min(a, b)}"
        thought, check = f"{steps.compare(a, b)}\n{ordered}", f"{steps.compare(b, a)}\n{ordered}"
        question = rng.choice(LARGER).format(a=a, b=b, w=word)
        return _said("compare", question, f"{winner} is {word}.", thought, check, winner, "number")
    if kind < 0.15:
        b = a if rng.random() < 0.5 else b
        question, asked = rng.choice(EQUAL).format(a=a, b=b), "="
    else:
        word, asked = rng.choice((("larger", ">"), ("greater", ">"), ("smaller", "<"), ("less", "<")))
        question = rng.choice(TRUTHS).format(a=a, b=b, w=word)
    line = steps.compare(a, b)
    answer = "Yes" if line[-1] == asked else "No"
    thought, check = f"{line}\n{asked}{line[-1]}{answer}", f"{steps.compare(b, a)}\n{answer}"
    return _said("compare", question, f"{answer}.", thought, check, f"{answer}.", "text")


def make_parity(rng: random.Random) -> Item:
    """Whether one number is even or odd, by its last digit."""
    a, asked = whole(rng, 5), rng.choice(("even", "odd"))
    found = "odd" if a % 2 else "even"
    answer = "Yes" if found == asked else "No"
    thought = f"{a}: {a % 10} {found}\n{asked}? {found} {answer}"
    question = rng.choice(PARITIES).format(a=a, w=asked)
    return _said("parity", question, f"{answer}.", thought, f"{a}: {a % 10} {found}\n{answer}", f"{answer}.", "text")


def _list(rng: random.Random, least: int, most: int) -> tuple[list[int], str]:
    """Numbers and how they are written. Long lists hold short numbers: what a step of the thought needs stays near."""
    count = rng.randrange(least, most + 1)
    size = rng.choice((1, 2, 2, 3, 3) if count <= 5 else (1, 2, 2))
    numbers = [whole(rng, size) for _ in range(count)]
    return numbers, rng.choice((" ", ", ", ", ")).join(map(str, numbers))


def make_sort(rng: random.Random) -> Item:
    """Two to eight numbers in order; the thought inserts one after another in a sorted row."""
    numbers, text = _list(rng, 2, 8)
    down = rng.random() < 0.35
    row: list[int] = []
    lines = []
    for number in numbers:
        lines.append(f"+{number}{_place(number, row, down)}:")
        row = sorted([*row, number], reverse=down)
        lines[-1] += " ".join(map(str, row))
    answer = ", ".join(map(str, row))
    sign = ">" if down else "<"
    rising = "".join(f"{x}{'=' if x == y else sign}" for x, y in itertools.pairwise(row)) + str(row[-1])
    check = f"{len(numbers)} numbers\n{rising}"
    lines.insert(0, "down" if down else "up")  # every insertion needs it, and the question is far
    question = rng.choice(SORTS_DOWN if down else SORTS).format(text)
    return _said("sort", question, answer, "\n".join(lines), check, row, "order")


def _place(number: int, row: list[int], down: bool) -> str:
    """Comparisons of a sorted row with a number, up to the first entry that stays behind it: ` 12< 30< 71>`."""
    out = ""
    for entry in row:
        out += f" {entry}{'<' if entry < number else '>' if entry > number else '='}"
        if entry == number or (entry < number) == down:
            break
    return out


def make_extreme(rng: random.Random) -> Item:
    """The largest or smallest of a list; the thought carries the best one so far."""
    numbers, text = _list(rng, 3, 8)
    large = rng.random() < 0.5
    word = rng.choice(("largest", "greatest", "biggest") if large else ("smallest", "lowest"))
    best, thought = numbers[0], [f"{word}\n{numbers[0]}:{numbers[0]}"]
    for number in numbers[1:]:
        best = max(best, number) if large else min(best, number)
        thought.append(f"{number}:{best}")
    question = rng.choice(EXTREMES).format(w=word, l=text)
    question = question[0].upper() + question[1:]
    back = [f"{n}:{(max if large else min)(numbers[i:])}" for i, n in reversed(list(enumerate(numbers)))]
    return _said("extreme", question, f"{best} is the {word}.", ";".join(thought), ";".join(back), best, "number")


def make_count(rng: random.Random) -> Item:
    """Letters of a word, a letter in a word, words of a sentence, numbers of a list, even or odd numbers."""
    kind, judged = rng.randrange(5), False
    if kind == 0:
        word = rng.choice(WORDS)
        letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghilmnoprstuw")
        question = rng.choice(LETTERS).format(x=letter, w=word)
        parts, hits, judged = list(word), [c == letter for c in word], True
    elif kind == 1:
        word = rng.choice(WORDS)
        question, parts, hits = rng.choice(LENGTHS).format(w=word), list(word), [True] * len(word)
    elif kind == 2:
        parts = rng.sample(SENTENCE_WORDS, rng.randrange(2, 10))
        question, hits = rng.choice(WORD_COUNTS).format(" ".join(parts)), [True] * len(parts)
    else:
        numbers, text = _list(rng, 2, 10)
        parts, odd = [str(n) for n in numbers], rng.random() < 0.5
        if kind == 3:
            question, hits = rng.choice(COUNTS).format(text), [True] * len(parts)
        else:
            question = rng.choice(EVENS).format(w="odd" if odd else "even", l=text)
            hits, judged = [n % 2 == odd for n in numbers], True
    thought, check = _tally(parts, hits, judged), _tally(parts[::-1], hits[::-1], judged)
    return solved("math", "count", question, [thought], [check], sum(hits))


def _tally(parts: list[str], hits: list[bool], judged: bool) -> str:
    """Each part with the count so far; the last number is the result. judged: a sign before the count says whether the
    part counts, so that no token has to judge and to count at once."""
    signs = ["+" if hit else "-" for hit in hits] if judged else [""] * len(hits)
    counts = itertools.accumulate(map(int, hits))
    return " ".join(f"{part}{sign}:{count}" for part, sign, count in zip(parts, signs, counts, strict=True))
