"""The tokenizer of the bundled model, trained on the data that the model learns.

    python -m recipes.nano.tokenizer runs/nano-tokenizer

One token per digit, as the corpus has none; the control tokens of V4; words of the tool block, of the Think Max
instruction and of all families.
"""

import argparse
import random
from collections.abc import Iterable, Iterator

from dsv4.encoding import V4, encode_messages, train_bpe
from recipes.nano.items.english import python_texts, story
from recipes.nano.items.item import draw
from recipes.nano.items.mix import makers, messages_of, table

SEED = 20261126
VOCABULARY = 3072
ITEMS = 12_000
# every word of the fixed texts becomes one token: they stand in a large share of all prompts
FIXED = 400
ENGLISH = 1_500_000  # characters of it; more would push out words of the tasks


def corpus(seed: int = SEED, items: int = ITEMS) -> Iterator[str]:
    """Texts without digits and control tokens. items: how many of all families."""
    rng = random.Random(seed)
    shares = table()
    for _ in range(items):
        name = rng.choices(list(shares), list(shares.values()))[0]
        item = draw(makers()[name], rng)
        yield _cleaned(encode_messages(messages_of(item, deep=rng.random() < 0.3), "thinking"))
    for _ in range(items // 20):
        yield _cleaned(story(rng))
    tools_block = V4.tools_block.format(dsml=V4.dsml, think_open=V4.think_open, think_close=V4.think_close, schemas="")
    for _ in range(FIXED):
        yield _cleaned(tools_block)
        yield _cleaned(dict(V4.efforts)["max"])
    total = 0
    for text in python_texts():
        total += len(text)
        if total > ENGLISH:
            break
        yield _cleaned(text)


def _cleaned(text: str) -> str:
    """Digits would grow into tokens of several; control tokens are there already."""
    for token in V4.control_tokens:
        text = text.replace(token, "\0")
    return "".join("\0" if c.isdigit() else c for c in text)


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """The texts between digits and control tokens."""
    for text in texts:
        yield from filter(None, text.split("\0"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    arguments = parser.parse_args()
    made = train_bpe(pieces(corpus()), arguments.vocabulary, arguments.folder)
    print(f"{made.vocab_size} tokens in {arguments.folder}")


if __name__ == "__main__":
    main()
