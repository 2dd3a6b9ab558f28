"""Warm-up documents without conversation: what comes later repeats what came before, so copying is all there is to
learn. Induction forms here in fewer tokens than from questions and answers."""

import random
from typing import Protocol

from dsv4.training.documents import Document
from recipes.nano.items.facts import make_one_kind
from recipes.nano.items.words import ANY, NAMES


class TextCodec(Protocol):
    """What a document needs of a tokenizer."""

    @property
    def bos_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    def encode_text(self, text: str) -> list[int]: ...


def drawn_length(rng: random.Random, shortest: int, longest: int, least: int) -> int:
    """Tokens of a document, log-uniform. Raises ValueError for less than `least`, or `shortest` above the other."""
    if not least <= shortest <= longest:
        raise ValueError(f"length must be at least shortest, and both at least {least}; got {longest} and {shortest}")
    return int(shortest * (longest / shortest) ** rng.random())


def document(rng: random.Random, codec: TextCodec, length: int = 512, new: float = 1.0) -> Document:
    """Repeated word sequences, keys with their values, or repeated facts, cut after `length` tokens.

    new: how much a token counts the first time, where nothing can foretell it; 1 = as much as a repeated one.
    Raises ValueError for another length than at least 16, or `new` outside [0, 1].
    """
    if length < 16:
        raise ValueError(f"length must be at least 16, got {length}")
    if not 0 <= new <= 1:
        raise ValueError(f"new must be in [0, 1], got {new}")
    parts = rng.choice((_sequences, _pairs, _facts))(rng, length)
    tokens, learn = [codec.bos_id], [1.0]
    seen: set[str] = set()
    for part in parts:
        ids = codec.encode_text(part)
        tokens += ids
        learn += [1.0 if part in seen else new] * len(ids)
        seen.add(part)
    return Document(tokens[:length], learn[:length])


def _sequences(rng: random.Random, length: int) -> list[str]:
    """A few sequences of 4 to 24 random words or numbers, in random order, again and again."""
    sequences = []
    for _ in range(rng.randint(1, 4)):
        words = [
            rng.choice(ANY) if rng.random() < 0.85 else str(rng.randrange(1000)) for _ in range(rng.randint(4, 24))
        ]
        sequences.append(" " + " ".join(words) + rng.choice((".", ";", "\n")))
    return [rng.choice(sequences) for _ in range(length // 4)]


def _pairs(rng: random.Random, length: int) -> list[str]:
    """Keys with values: every pair comes in random order, many times."""
    form = rng.choice((" {} = {};", " {}: {}\n", " {} {},", "\n{} -> {}"))
    keys = rng.sample(ANY if rng.random() < 0.5 else NAMES, rng.randint(2, 24))
    numbers = rng.random() < 0.5
    pairs = [form.format(key, rng.randrange(10_000) if numbers else rng.choice(ANY)) for key in keys]
    return _shuffled(rng, pairs, length // 3 + 1)


def _facts(rng: random.Random, length: int) -> list[str]:
    """Sentences of one kind that differ in name and value, as in the questions about facts."""
    text = make_one_kind(rng, most=16, turns=1).messages[0]["content"]
    sentences = [
        f" {sentence.strip(chr(46))}." for sentence in text.replace("\n", " ").split(". ") if "?" not in sentence
    ]
    return _shuffled(rng, sentences, length // 4)


def _shuffled(rng: random.Random, parts: list[str], count: int) -> list[str]:
    out: list[str] = []
    while len(out) < count:
        out += rng.sample(parts, len(parts))
    return out
