"""Documents without conversation that ask for copies over any distance: statements among filler, then each of them once
more. A window does not reach the first time, so the compressed entries must hold it and the indexer must find it.

Nothing is repeated twice: the third time could be copied from the second, which is near.
"""

import random

from dsv4.training.documents import Document
from recipes.nano.items.copies import misspelt
from recipes.nano.items.needles import filler, hidden_facts
from recipes.nano.items.tool_kinds import file_name, made_up
from recipes.nano.items.warm_up import TextCodec, drawn_length
from recipes.nano.items.words import ANY, NAMES

Statement = tuple[str, str]  # what asks, what answers: only the second can be foretold
_SHORTEST = 128
_ASKING = 0.3  # of the document: the repeated statements
_FULL = (0.15, 0.45)  # of what comes before them: statements; the rest is filler


def document(rng: random.Random, codec: TextCodec, length: int = 1024, shortest: int | None = None) -> Document:
    """Statements and filler, about `length` tokens (`shortest` to `length`, log-uniform); behind them the statements in
    another order, of which the second part is learned. Raises ValueError for less than 128 tokens."""
    shortest = length if shortest is None else shortest
    length = drawn_length(rng, shortest, length, _SHORTEST)
    budget = length * (1 - _ASKING)
    statements = _statements(rng, codec, int(budget * rng.uniform(*_FULL)))
    parts = ["".join(pair) for pair in statements]
    used, sentences = sum(len(codec.encode_text(part)) for part in parts), filler(rng)
    while used < budget:
        parts.append(" " + next(sentences))
        used += len(codec.encode_text(parts[-1]))
    rng.shuffle(parts)
    tokens = [codec.bos_id, *(token for part in parts for token in codec.encode_text(part))]
    learn = [0.0] * len(tokens)
    for head, tail in rng.sample(statements, len(statements)):
        whole = codec.encode_text(head + tail)
        known = len(codec.encode_text(head))
        if len(tokens) + len(whole) > length:
            break
        tokens += whole
        learn += [0.0] * known + [1.0] * (len(whole) - known)
    return Document(tokens, learn)


def _statements(rng: random.Random, codec: TextCodec, room: int) -> list[Statement]:
    """Different statements of one form, at least two, of about `room` tokens."""
    make = rng.choice((_needles, _needles, _pairs, _sequences, _misspelt))
    found: dict[str, Statement] = {}
    used = 0
    for head, tail in make(rng):
        if head in found:
            continue
        found[head] = head, tail
        used += len(codec.encode_text(head + tail))
        if used >= room and len(found) > 1:
            break
    return list(found.values())


def _needles(rng: random.Random) -> list[Statement]:
    """The sentences that needles are made of."""
    return [(" " + head, tail) for head, tail in hidden_facts(rng)]


def _pairs(rng: random.Random) -> list[Statement]:
    """Keys with values, in one of several forms."""
    form = rng.choice((" {} =", " {}:", " {} ->", "\n{}:", "\n{} is"))
    end = rng.choice((";", ".", ",", "\n"))
    keys = rng.sample(ANY if rng.random() < 0.5 else NAMES, 40)
    numbers, digits = rng.random() < 0.5, rng.randint(1, 5)
    values = [str(rng.randrange(10 ** (digits - 1), 10**digits)) if numbers else rng.choice(ANY) for _ in keys]
    return [(form.format(key), f" {value}{end}") for key, value in zip(keys, values, strict=True)]


def _sequences(rng: random.Random) -> list[Statement]:
    """Names of functions, of two or three parts, and rows of words: the start tells which one goes on."""
    known = rng.sample(ANY, 40)
    if rng.random() < 0.5:
        return [(f" {word}", f"_{'_'.join(made_up(rng) for _ in range(rng.randint(1, 3)))};") for word in known]
    return [(f" {word}", f" {' '.join(rng.choices(ANY, k=rng.randint(3, 12)))}.") for word in known]


def _misspelt(rng: random.Random) -> list[Statement]:
    """Words and names of files with a wrong letter: pieces that stand beside each other nowhere else."""
    form, end = rng.choice((" {}:", " {} =", "\n{} ->")), rng.choice((";", ",", "\n"))
    known = rng.sample(ANY, 40)
    return [
        (form.format(word), f" {misspelt(rng, file_name(rng) if rng.random() < 0.5 else rng.choice(ANY))}{end}")
        for word in known
    ]
