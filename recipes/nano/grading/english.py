"""Plain English: bits per byte of held-out texts, from the logits of the loaded model."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

import dsv4
from recipes.nano.items.english import python_texts, story

STORIES = 200
MOST_BYTES = 60_000  # of each source


def held_out_texts(seed: int) -> dict[str, list[str]]:
    """Texts of Python that training does not see, and stories, of which no two are alike."""
    rng = random.Random(f"{seed}/english")
    texts = list(python_texts(held_out=True))
    rng.shuffle(texts)
    return {"python": _cut(texts), "stories": _cut([story(rng) for _ in range(STORIES)])}


def _cut(texts: Sequence[str]) -> list[str]:
    found, total = [], 0
    for text in texts:
        total += len(text.encode())
        if total > MOST_BYTES and found:
            break
        found.append(text)
    return found


def bits_per_byte(model: "dsv4.LocalModel", texts: Sequence[str], told: Callable[[], None]) -> dict[str, Any]:
    """The bits that the model needs for the texts, each a document of its own, by their bytes in UTF-8."""
    tokenizer = model.tokenizer
    bits, size, tokens = 0.0, 0, 0
    for text in texts:
        ids = [tokenizer.bos_id, *tokenizer.encode_text(text), tokenizer.eos_id]
        log_TV = torch.log_softmax(model.logits(ids)[:-1], dim=-1)
        chosen_T = log_TV.gather(1, torch.tensor(ids[1:])[:, None])
        bits -= float(chosen_T.sum()) / math.log(2)
        size += len(text.encode())
        tokens += len(ids) - 1
        told()
    return {"bits_per_byte": bits / size, "bytes": size, "tokens": tokens, "documents": len(texts)}
