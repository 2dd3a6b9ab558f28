"""The bundled model's training data: generated conversations as documents, and the tokenizer made for them.

    python -m recipes.nano.conversations runs/nano-tokenizer

trains the tokenizer anew; `nano.toml` uses the one of `models/nano`.
"""

import random
import sys
import sysconfig
from pathlib import Path

from dsv4.encoding import Tokenizer, train_bpe
from dsv4.training.documents import Document
from recipes.nano.tasks import conversation

SEED = 20261122
VOCABULARY = 4096


def document(rng: random.Random, codec: Tokenizer, length: int = 1024, thinking: float = 0.6) -> Document:
    """A conversation in the prompt format, cut after `length` tokens, of which the tokens that the assistant says are
    learned. thinking: share of conversations with visible thoughts."""
    mode = "thinking" if rng.random() < thinking else "chat"
    tokens = codec.encode_messages(conversation(rng, mode == "thinking"), mode)[:length]
    return Document(tokens, _said(tokens, codec.token_id("<｜Assistant｜>"), codec.eos_id))


def _said(tokens: list[int], assistant: int, eos: int) -> list[float]:
    """1 for what the assistant says, the end of its turn included; 0 for the rest."""
    said, start = [0.0] * len(tokens), len(tokens)
    for i, token in enumerate(tokens):
        if token == assistant:
            start = i + 2  # the mark that opens or closes the thought belongs to the prompt
        said[i] = float(i >= start)
        if token == eos:
            start = len(tokens)
    return said


def tokenizer_corpus() -> list[str]:
    """Conversations of the tasks and, for general English, docstrings of the standard library; no digits, so that
    every digit stays a token of its own."""
    rng = random.Random(SEED)
    texts = [m["content"] for _ in range(3000) for m in conversation(rng, True)]
    texts += [m["reasoning_content"] for _ in range(3000) for m in conversation(rng, True) if "reasoning_content" in m]
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        parts = file.read_text(encoding="utf-8", errors="ignore").split('"""')
        texts += parts[1::2]
    return ["".join(c for c in text if not c.isdigit()) for text in texts]


if __name__ == "__main__":
    train_bpe(tokenizer_corpus(), VOCABULARY, sys.argv[1])
