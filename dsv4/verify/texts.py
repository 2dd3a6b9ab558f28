"""Prompts that are made here, the same in every run."""

import random

NOUNS = ("river", "garden", "letter", "winter", "engine", "market", "bridge", "candle", "planet", "forest", "window")
VERBS = ("follows", "carries", "watches", "answers", "repairs", "forgets", "measures", "collects")
PLACES = ("near the harbour", "behind the library", "in the valley", "under the old tower", "at the station")
# short questions about different things, so that 16 answers differ
QUESTIONS = (
    "What is 17 + 25?", "What is the capital of France?", "Name three colours.", "Write one sentence about rain.",
    "What is 9 times 8?", "Count from one to ten.", "Who wrote Hamlet?", "Translate 'good morning' into German.",
    "Sort 52, 9, 37, 11, 86, 4.", "What is the opposite of cold?", "Spell the word bridge backwards.",
    "What day follows Monday?", "How many legs has a spider?", "What is 100 - 37?", "Name a river in Europe.",
    "Say one word that rhymes with light.",
)  # fmt: skip


def words(count: int, *, seed: int) -> str:
    """A plain text of that many words: sentences that a tokenizer cuts into few tokens a word."""
    chance = random.Random(seed)
    text: list[str] = []
    while len(text) < count:
        place = chance.choice(PLACES)
        text += f"The {chance.choice(NOUNS)} {chance.choice(VERBS)} the {chance.choice(NOUNS)} {place}.".split()
    return " ".join(text[:count])
