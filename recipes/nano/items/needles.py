"""Needles: a few sentences with keys and values hidden in long filler text, of which one is asked for."""

import random
from collections.abc import Callable, Iterator

from recipes.nano.items.facts import found
from recipes.nano.items.item import Item, Message
from recipes.nano.items.words import ANIMALS, COLOURS, DAYS, FOODS, NAMES, PLACES, ROOMS, THINGS

SHORTEST, LONGEST = 256, 1_048_576
_KINDS = (
    ("The secret code of {k} is {v}.", ("What is the secret code of {k}?", "Tell me the secret code of {k}."), PLACES),
    ("The magic number of {k} is {v}.", ("What is the magic number of {k}?", "Which magic number has {k}?"), NAMES),
    ("The password for the {k} is {v}.", ("What is the password for the {k}?", "password for the {k}?"), THINGS),
    ("The {k} has the number {v}.", ("Which number does the {k} have?", "What is the number of the {k}?"), ANIMALS),
    ("{k} hid the {v}.", ("What did {k} hide?", "Which thing did {k} hide?"), NAMES),
    ("The {k} box holds {v}.", ("What does the {k} box hold?", "What is in the {k} box?"), COLOURS),
)
_FILLER = (
    "The sky is {c} over {p} today.",
    "A {c} {t} stands in the {r}.",
    "On {d} the {a} sleeps near the {t}.",
    "People in {p} eat {f} and talk about the weather.",
    "The {a} walks slowly along the river.",
    "It was a quiet {d} and nobody came to the {r}.",
    "Some say that the {t} is old, others say that it is new.",
    "The road to {p} is long and the hills are {c}.",
    "There is {f} on the table and a {t} on the floor.",
    "In the {r} the light is {c} in the morning.",
    "The wind blows and the {a} runs away.",
    "Nothing happened on {d}.",
    "The train to {p} was late again.",
    "We had {f} for lunch and went home.",
    "The {t} in the {r} makes no sound.",
    "The grass is green and the sun is high.",
    "She looked at the {c} {t} for a long time.",
    "He read a book about the {a} until it was dark.",
)


def words_of(text: str) -> int:
    """About how many tokens a sentence has: its words, its digits and its full stop."""
    return len(text.split()) + sum(c.isdigit() for c in text) + 1


def filler(rng: random.Random) -> Iterator[str]:
    """Sentences without end that say nothing worth asking for."""
    while True:
        yield rng.choice(_FILLER).format(
            c=rng.choice(COLOURS),
            p=rng.choice(PLACES),
            t=rng.choice(THINGS),
            r=rng.choice(ROOMS),
            d=rng.choice(DAYS),
            a=rng.choice(ANIMALS),
            f=rng.choice(FOODS),
        )


def hidden_facts(rng: random.Random) -> list[tuple[str, str]]:
    """Needles of one kind with all its keys in random order, each as what comes before its value and the rest."""
    statement, _, keys = rng.choice(_KINDS)
    head, tail = statement.split(" {v}")
    return [(head.format(k=key), f" {_value(rng, statement)}{tail}") for key in rng.sample(keys, len(keys))]


def _value(rng: random.Random, statement: str) -> str:
    worded = statement.startswith(("{k} hid", "The {k} box"))
    return rng.choice((*THINGS, *FOODS)) if worded else str(rng.randrange(1000, 10_000))


def make_needle(
    rng: random.Random,
    length: int = 1024,
    needles: int | None = None,
    turns: int | None = None,
    count: Callable[[str], int] = words_of,
) -> Item:
    """A text of about `length` tokens, measured sentence by sentence with `count`, that hides needles of one kind.

    needles: how many, the others distract; None for 2 to 16. turns: how many are asked for in turn; None for 1 to 4.
    Raises ValueError for a length outside 256..1,048,576.
    """
    if not SHORTEST <= length <= LONGEST:
        raise ValueError(f"length must be in [{SHORTEST}, {LONGEST}], got {length}")
    statement, questions, keys = rng.choice(_KINDS)
    hidden = min(len(keys), needles or rng.randint(2, 16))
    facts: list[tuple[str, str, str]] = []
    for key in rng.sample(keys, hidden):
        value = _value(rng, statement)
        facts.append((key, value, statement.format(k=key, v=value)))
    sentences, total = [fact[2] for fact in facts], sum(count(fact[2]) for fact in facts)
    for sentence in filler(rng):
        total += count(sentence)
        if total > length:
            break
        sentences.append(sentence)
    rng.shuffle(sentences)
    messages: list[Message] = []
    text = " ".join(sentences)
    for key, _, fact in (asked := rng.sample(facts, min(hidden, turns or rng.randint(1, 4)))):
        question = rng.choice(questions).format(k=key)
        messages += [
            {"role": "user", "content": question if messages else f"{text}\n{question}"},
            {"role": "assistant", "content": fact, "reasoning_content": found(key, fact)},
        ]
    key, value, fact = asked[-1]
    thought = found(key, fact)
    deep = f"I look for the sentence. {thought} I check it again: {thought} So the answer is {value}."
    level = (length > 512) + (length > 2048) + (length > 8192)
    return Item("facts", "needle", tuple(messages), value, "contains", deep=deep, level=level)
