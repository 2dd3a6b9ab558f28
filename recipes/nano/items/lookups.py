"""Texts of facts without conversation, then many questions about them, each with the thought that answers it: the fact,
or that the text does not say.

A conversation asks once or twice about its text, so that looking a name up and missing it is learned from one token in
hundreds. Here it is one in ten, and half of the names and values are missing.
"""

import random
from collections.abc import Iterator

from dsv4.training.documents import Document
from recipes.nano.items.facts import (
    Fact,
    facts_of_mixed_kinds,
    facts_of_one_kind,
    found,
    joined,
    missed,
    stranger_to,
)
from recipes.nano.items.needles import filler
from recipes.nano.items.warm_up import TextCodec, drawn_length

_SHORTEST = 48
_TEXT = 0.6  # of the document at most: the facts and the filler among them
_MISSING = 0.5  # of the questions
_MIXED = 0.3  # of the texts: facts of several kinds
_FILLED = 0.3  # of the texts: filler among the facts
_ASKING = 0.5  # of the documents: questions before the thoughts, else the key alone
_PER_FACT = 12  # tokens, about


def document(
    rng: random.Random,
    codec: TextCodec,
    length: int = 1024,
    shortest: int = _SHORTEST,
    by_value: float | None = None,
) -> Document:
    """Facts, then lookups. A most is drawn between `shortest` and `length` tokens (log-uniform); few facts, each asked
    for once, may fill less. Learned is what follows a key, and the whole thought where a question asks for it.
    by_value: all texts are of one kind, and so many questions give a value and ask whose it is: the name stands before
    what is found then, and only these questions teach to step back to it. Raises ValueError for less than 48 tokens, or
    by_value outside [0, 1]."""
    if by_value is not None and not 0 <= by_value <= 1:
        raise ValueError(f"by_value must be in [0, 1], got {by_value}")
    length = drawn_length(rng, shortest, length, _SHORTEST)
    mixed = by_value is None and rng.random() < _MIXED
    facts = _facts(rng, length, by_value, mixed)
    text = _text(rng, facts, length)
    asking = rng.random() < _ASKING
    tokens = [codec.bos_id, *codec.encode_text(text)]
    learn = [0.0] * len(tokens)
    for question, key, thought in _lookups(rng, text, facts, 0.0 if mixed else by_value):
        start = f"\n{question}\n" if asking else "\n"
        known = len(codec.encode_text(start if asking else f"{start}About {key}:"))
        ids = codec.encode_text(start + thought)
        if len(tokens) + len(ids) > length and any(learn):
            break
        tokens += ids
        learn += [0.0] * known + [1.0] * (len(ids) - known)
    return Document(tokens, learn)


def _facts(rng: random.Random, length: int, by_value: float | None, mixed: bool) -> list[Fact]:
    """Two facts, up to as many as the text has room for; few of them more often."""
    most = max(2, min(30, int(length * _TEXT) // _PER_FACT))
    count = min(most, 2 + int((most - 1) * rng.random() ** 1.5))
    if mixed:
        return facts_of_mixed_kinds(rng, count)
    return facts_of_one_kind(rng, count, by_value)


def _text(rng: random.Random, facts: list[Fact], length: int) -> str:
    """The facts in order, in some texts with filler among them."""
    text = joined(rng, facts)
    room = int(length * _TEXT) // _PER_FACT - len(facts)
    if room < 1 or rng.random() >= _FILLED:
        return text
    more = filler(rng)
    sentences = [fact.statement for fact in facts] + [next(more) for _ in range(rng.randint(1, room))]
    rng.shuffle(sentences)
    return " ".join(sentences)


def _lookups(
    rng: random.Random, text: str, facts: list[Fact], by_value: float | None
) -> Iterator[tuple[str, str, str]]:
    """Questions, what each looks for, and the thought: every fact once, since the second time the thought before has
    it, and missing ones between them."""
    for fact in rng.sample(facts, len(facts)):
        while rng.random() < _MISSING:
            stranger, question = stranger_to(rng, text, fact, 0.25 if by_value is None else by_value)
            yield question, stranger, missed(stranger)
        yield rng.choice(fact.questions), fact.key, found(fact.key, fact.statement)
