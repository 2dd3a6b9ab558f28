"""Generated documents whose answers can be graded.

Tokens are plain ids, so that no tokenizer gets between the task and the model: KEYS + i a key, VALUES + i a value,
NOISE + i a filler.
"""

import random

from dsv4.training.documents import Codec, Document

SIZE = 64  # of each alphabet
KEYS, VALUES, NOISE, ASK = 300, 364, 428, 299
BOS = 0


def retrieval(rng: random.Random, codec: Codec | None, length: int = 256, needles: int = 16) -> Document:
    """Key-value pairs at random places among fillers, then keys asked for. Only the answers are learned.

    Lengths are drawn evenly on a log scale from 32 to `length`: short documents ask more often for each token, which
    is how the task is found at all; positions mean nothing. Chance is 1 in 64.
    """
    size = round(32 * (length / 32) ** rng.random())
    pairs = max(2, min(needles, size // 8))
    tokens, asked = haystack(rng, size, pairs, pairs)
    learn = [0.0] * len(tokens)
    for key, value in asked:
        tokens += [ASK, key, value]
        learn += [0.0, 0.0, 1.0]
    return Document(tokens, learn)


def haystack(rng: random.Random, length: int, needles: int, queries: int) -> tuple[list[int], list[tuple[int, int]]]:
    """The document before its queries, about `length` tokens in all, and the (key, value) pairs to ask for."""
    filler = max(1, length - 1 - 2 * needles - 3 * queries)
    tokens = [NOISE + rng.randrange(SIZE) for _ in range(filler)]
    pairs = [(KEYS + key, VALUES + rng.randrange(SIZE)) for key in rng.sample(range(SIZE), needles)]
    places = sorted((rng.randrange(filler + 1), pair) for pair in pairs)
    for place, pair in reversed(places):
        tokens[place:place] = pair
    return [BOS, *tokens], rng.sample(pairs, queries)


def sorting(rng: random.Random, codec: Codec | None, most: int = 12) -> Document:
    """A list of distinct values, a mark, the same sorted: every token of the answer is learned."""
    values = rng.sample(range(SIZE), rng.randrange(4, most + 1))
    answer = sorted(values)
    tokens = [BOS, *(VALUES + v for v in values), ASK, *(VALUES + v for v in answer)]
    return Document(tokens, [0.0] * (len(values) + 2) + [1.0] * len(values))
