"""Needles in long texts: one text is read once (the server keeps it) and asked several times."""

import random
from collections.abc import Callable
from functools import lru_cache

from dsv4.encoding import Tokenizer
from dsv4.posttraining.types import Effort
from dsv4.posttraining.verifiers import reward
from recipes.nano.grading.clients import OpenAIDialogue
from recipes.nano.grading.figures import Outcome
from recipes.nano.items.item import Item
from recipes.nano.items.needles import LONGEST, make_needle

TURNS = 4
EFFORT = Effort.HIGH
ROOM = 4096  # tokens of a context that the text leaves to questions and answers
TRAINED = 8192  # longer texts are in no training set, so none of them has to be held out


def text_of(rng: random.Random, length: int, tokenizer: Tokenizer) -> Item:
    """An item whose text has about `length` tokens of this tokenizer, with TURNS questions; of the longest context
    the room for answers is left free."""

    @lru_cache(100_000)
    def count(sentence: str) -> int:
        return len(tokenizer.encode_text(" " + sentence))

    length = min(length, LONGEST - ROOM)
    while True:
        item = make_needle(rng, length, turns=TURNS, count=count)
        if length > TRAINED or item.held_out:
            return item


async def ask(
    item: Item, dialogue: Callable[[], OpenAIDialogue], told: Callable[[], None], enough: Callable[[], bool]
) -> list[Outcome]:
    """Every question of the text in turn, after the model's own answers. enough: asked after each, ends it early."""
    talk, outcomes = dialogue(), []
    for number, message in enumerate(item.messages):
        if message["role"] != "user":
            continue
        talk.say(message["content"])
        turn = await talk.answer()
        # the statement of the needle, of which the value is the last word
        value = item.messages[number + 1]["content"].rstrip(".").rsplit(" ", 1)[-1]
        score = 0.0 if turn.cut else reward("contains", turn.content, value)
        outcomes.append(Outcome("needle", score, turn.tokens, turn.cut))
        told()
        if enough():
            break
    return outcomes
