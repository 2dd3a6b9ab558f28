"""What is copied as it stands: rows of tokens of the whole vocabulary, and texts that a user wants to have repeated.

Generated conversations have few words: two of five tokens of the vocabulary are met less than five times in 300,000
tokens of them, and what is met so seldom is not copied, which shows in names of files and keys that a user invents.
"""

import random
import re
from dataclasses import replace
from functools import lru_cache

from dsv4.encoding import Tokenizer
from dsv4.training.documents import Document
from recipes.nano.items.item import Item
from recipes.nano.items.talk import talk_about
from recipes.nano.items.tool_kinds import file_name, made_up
from recipes.nano.items.warm_up import drawn_length
from recipes.nano.items.words import ANY

_SHORTEST, _LONGEST_ROW = 64, 8
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def document(rng: random.Random, codec: Tokenizer, length: int = 512, shortest: int = _SHORTEST) -> Document:
    """Rows of two to nine tokens, then some of them in another order, between `shortest` and `length` tokens in all
    (log-uniform). No two rows begin with the same token; behind it the second row is learned. Raises ValueError for
    less than 64 tokens."""
    length = drawn_length(rng, shortest, length, _SHORTEST)
    words, end = _tokens(codec), codec.encode_text("\n")
    rows, used = list[list[int]](), 1
    for first in rng.sample(words, min(length // 2, len(words))):
        rows.append([first, *rng.choices(words, k=rng.randint(1, _LONGEST_ROW)), *end])
        used += len(rows[-1])
        if used >= length // 2 and len(rows) > 1:
            break
    tokens = [codec.bos_id, *(token for row in rows for token in row)]
    learn = [0.0] * len(tokens)
    for row in rng.sample(rows, len(rows)):
        if len(tokens) + len(row) > length:
            break
        tokens += row
        learn += [0.0] + [1.0] * (len(row) - 1)
    return Document(tokens, learn)


@lru_cache(maxsize=4)
def _tokens(codec: Tokenizer) -> list[int]:
    """All tokens but those that steer the conversation, and the end of a row."""
    return sorted(set(range(codec.vocab_size)).difference(codec.controls, codec.encode_text("\n")))


def make_repeat(rng: random.Random) -> Item:
    """A user wants to have a text repeated: words, names of files, numbers, or letters that mean nothing."""
    while True:
        item = talk_about(rng, "repeat")
        asked, said = item.messages
        whole = re.compile(rf"(?<!\w){re.escape(said['content'])}(?!\w)")  # "no" is also within "nothing"
        if whole.search(asked["content"]):
            break
    text = rng.choice((" ", " ", "_")).join(_piece(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))))
    messages = (asked | {"content": whole.sub(text, asked["content"])}, said | {"content": text})
    return replace(item, messages=messages, answer=(text,))


def _piece(rng: random.Random) -> str:
    word = rng.choice(ANY)
    return rng.choice(
        (
            word,
            word.lower(),
            misspelt(rng, word),
            file_name(rng),
            misspelt(rng, file_name(rng)),
            made_up(rng),
            "".join(rng.choices(_LETTERS, k=rng.randint(2, 9))),
            "".join(rng.choices(_LETTERS.upper(), k=rng.randint(1, 4))) + str(rng.randrange(1000)),
            str(rng.randrange(10 ** rng.randint(1, 8))),
        )
    )


def misspelt(rng: random.Random, word: str) -> str:
    """One letter is left out, doubled, exchanged with the next, or another."""
    at = rng.randrange(len(word))
    letter = word[at]
    return rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + letter + word[at:],
            word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
            word[:at] + rng.choice(_LETTERS) + word[at + 1 :],
        )
    )
