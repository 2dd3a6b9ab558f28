"""Documents of single-token keys and values among filler: keys come once more, and their values are to be recalled.

The shortest task that needs compressed entries: one of them must hold a key with its value, and the key must find it
later. With a window of 16 tokens nothing else can answer (chain/sft/recall.toml).
"""

import random
from functools import lru_cache

from dsv4.training.documents import Document
from recipes.nano.items.warm_up import TextCodec, drawn_length
from recipes.nano.items.words import ANY

_FILLER = (" the", ".", ",", " a", " and", " of", " to", " in", " is", " it", "\n", " was")
_ASKING = 0.4  # of the document: the repeated pairs
_SHORTEST = 32


def document(rng: random.Random, codec: TextCodec, length: int = 256, shortest: int = _SHORTEST) -> Document:
    """Pairs among filler, then pairs of them once more, between `shortest` and `length` tokens (log-uniform). Raises
    ValueError for less than 32 tokens."""
    length = drawn_length(rng, shortest, length, _SHORTEST)
    words, filler = _tokens(codec)
    asked = max(2, int(length * _ASKING) // 3)
    room, gap = length - 3 * asked, rng.choice((1, 2, 4, 8))
    tokens, pairs = [codec.bos_id], list[tuple[int, int]]()
    for key in rng.sample(words, len(words)):
        if len(tokens) + 2 > room:
            break
        pairs.append((key, rng.choice(words)))
        tokens += pairs[-1]
        tokens += rng.choices(filler, k=min(rng.randint(0, 2 * gap), room - len(tokens)))
    learn = [0.0] * len(tokens)
    for key, value in rng.sample(pairs, min(len(pairs), asked)):
        tokens += [key, value, rng.choice(filler)]
        learn += [0.0, 1.0, 0.0]
    return Document(tokens, learn)


@lru_cache(maxsize=4)
def _tokens(codec: TextCodec) -> tuple[list[int], list[int]]:
    """Words of one token, and the filler."""
    words = {ids[0] for word in ANY if len(ids := codec.encode_text(f" {word}")) == 1}
    filler = [codec.encode_text(text)[0] for text in _FILLER]
    return sorted(words.difference(filler)), filler
