"""Words letter by letter, without conversation: many questions about letters in a row, each with its thought.

A word is a few pieces of the vocabulary, whose letters nothing shows; that `ffee` holds two `f` is learned by spelling
it. Conversations count the letters of some hundred words, and a word that is none of them was spelled as another.
"""

import random
from collections import Counter
from functools import lru_cache

from dsv4.training.documents import Document
from recipes.nano.items.english import python_texts
from recipes.nano.items.ordering import WORDS, letters_of
from recipes.nano.items.tool_kinds import made_up
from recipes.nano.items.warm_up import TextCodec
from recipes.nano.items.words import ANY

_LEAST = 3  # occurrences of a word in the texts
_LETTERS = range(3, 13)
_ONE = 0.5  # of the questions: how often one letter occurs


def document(rng: random.Random, codec: TextCodec, length: int = 512) -> Document:
    """Questions about the letters of words with their thoughts, as many as fit in `length` tokens; the thoughts are
    learned. Raises ValueError for less than 128 tokens."""
    if length < 128:
        raise ValueError(f"length must be at least 128, got {length}")
    tokens, learn = [codec.bos_id], [0.0]
    while True:
        counted = letters_of(rng, _word(rng), one=rng.random() < _ONE)
        asked, told = codec.encode_text(f"{counted.question}\n"), codec.encode_text(f"{counted.thought}\n")
        if len(tokens) + len(asked) + len(told) > length:
            return Document(tokens, learn)
        tokens += [*asked, *told]
        learn += [0.0] * len(asked) + [1.0] * len(told)


def _word(rng: random.Random) -> str:
    """Words of the items, of English texts, and made-up ones, whose pieces come in any order."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(known_words())
    return rng.choice(english_words()) if kind < 0.85 else made_up(rng)


@lru_cache
def known_words() -> tuple[str, ...]:
    return tuple(dict.fromkeys([*WORDS, *(word.lower() for word in ANY)]))


@lru_cache
def english_words() -> tuple[str, ...]:
    """Words of the texts that come with Python, which people type too."""
    found = Counter(
        word.lower().strip(".,:;!?\"'()") for text in python_texts() for word in text.split() if word.isascii()
    )
    return tuple(sorted(w for w, times in found.items() if times >= _LEAST and len(w) in _LETTERS and w.isalpha()))
