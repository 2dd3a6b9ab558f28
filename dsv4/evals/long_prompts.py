"""Prompts of a wanted length: text that carries no answer, and the amount of it that fills so many tokens."""

import random
from collections.abc import Callable
from typing import TypeVar

from dsv4.verify.texts import NOUNS, PLACES, VERBS

Built = TypeVar("Built")
Count = Callable[[str], int]  # tokens of a text
LENGTHS = tuple(2**power for power in range(12, 21))  # 4K to 1M, the lengths of RULER and of the report's figure 9
CLOSE = 0.01  # of the wanted length: so much may be missing


def label(tokens: int) -> str:
    """A length as people write it: 8192 -> 8K, 2**20 -> 1M, 5000 -> 5000."""
    for size, letter in ((2**20, "M"), (2**10, "K")):
        if tokens % size == 0:
            return f"{tokens // size}{letter}"
    return str(tokens)


def sentences(count: int, seed: int) -> list[str]:
    """Sentences without numbers, names or rare words, the same for a seed; a longer list begins with a shorter one."""
    chance = random.Random(seed)
    return [
        f"The {chance.choice(NOUNS)} {chance.choice(VERBS)} the {chance.choice(NOUNS)} {chance.choice(PLACES)}."
        for _ in range(count)
    ]


def fit(build: Callable[[int], Built], text: Callable[[Built], str], tokens: int, count: Count) -> Built:
    """The largest of build(0), build(1), ... with at most `tokens` tokens, or one at most CLOSE shorter.

    `build` makes the same for a number each time, and more for a larger one. The text grows almost in proportion, so
    few are built and counted, which matters where a server counts. Raises ValueError if even build(0) is longer.
    """
    low, best = 0, build(0)
    length = count(text(best))
    if length > tokens:
        raise ValueError(f"lengths: {tokens:,} tokens are too few for this question, which needs {length:,}")
    high, step, per_unit = None, 32, 0.0
    while high is None or high - low > 1:
        if per_unit > 0:
            step = max(1, int((tokens - length) / per_unit))
        guess = low + step
        if high is not None and guess >= high:
            guess = (low + high) // 2
        built = build(guess)
        its_length = count(text(built))
        if its_length > tokens:
            high = guess
            per_unit = max(per_unit, (its_length - length) / (guess - low))
            continue
        per_unit = (its_length - length) / (guess - low)
        low, best, length = guess, built, its_length
        if tokens - length <= CLOSE * tokens and (per_unit == 0 or tokens - length < max(per_unit, CLOSE * tokens)):
            break
    return best


def insert(parts: list[str], needles: list[str], chance: random.Random) -> list[str]:
    """The parts with the needles among them, in their order, at random places of which no two are the same gap where
    there are enough."""
    gaps = sorted(chance.sample(range(len(parts) + 1), len(needles)) if len(parts) + 1 >= len(needles) else
                  chance.choices(range(len(parts) + 1), k=len(needles)))  # fmt: skip
    mixed: list[str] = []
    for place in range(len(parts) + 1):
        mixed += [needle for gap, needle in zip(gaps, needles, strict=True) if gap == place]
        mixed += parts[place : place + 1]
    return mixed
