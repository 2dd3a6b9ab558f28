"""Small talk, who the model is, and what it cannot do: wordings composed from `talk.toml`."""

import itertools
import json
import random
import re
import tomllib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from recipes.nano.items.item import Item, Message
from recipes.nano.items.words import ANIMALS, FOODS, NAMES, PLACES, THINGS

FOLDER = Path(__file__).parent
HELD_OUT = FOLDER / "talk_held_out.jsonl"
HINTS = (
    "But I can do sums for you.",
    "But I can sort or compare numbers.",
    "But I can find facts in a text that you give me.",
    "Ask me for a sum, or for a fact in a text.",
    "Give me a sum or a number puzzle instead.",
)
_WORDS = {"thing": THINGS, "animal": ANIMALS, "food": FOODS, "name": NAMES, "city": PLACES}
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_OPENERS = (
    "hey, ",
    "hello, ",
    "hi nano, ",
    "so ",
    "ok, ",
    "well, ",
    "um, ",
    "please, ",
    "nano, ",
    "tell me, ",
    "now, ",
)
_CLOSERS = (" please", ", please", " nano", ", nano", " now", " for me", " then", " today", " my friend")
_BARE = {"greeting", "goodbye", "good_night", "good_morning", "good_evening", "thanks", "yes", "no", "unclear", "sorry",
         "test", "user_name", "praise"}  # fmt: skip


@lru_cache
def intents() -> dict[str, dict[str, list[str] | str]]:
    return tomllib.loads((FOLDER / "talk.toml").read_text(encoding="utf-8"))


def wordings(pattern: str) -> list[str]:
    """All texts of a pattern with [a|b] alternatives; words in braces stay."""
    parts = _CHOICE.split(pattern)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return [" ".join("".join(chosen).split()) for chosen in itertools.product(*choices)]


@lru_cache
def _all_wordings(intent: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(wordings(pattern)) for pattern in intents()[intent]["says"])


@lru_cache
def held_out_wordings() -> dict[str, str]:
    """Wordings, as `plain` writes them, that no training item has, with their intents."""
    lines = HELD_OUT.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {plain(row["wording"]): row["intent"] for row in rows}


def plain(text: str) -> str:
    """A wording without case, punctuation and double blanks."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def _typo(rng: random.Random, text: str) -> str:
    """Two letters exchanged, or one left out or doubled."""
    at = rng.randrange(1, len(text) - 1)
    if not text[at : at + 2].isalpha():
        return text
    return text[:at] + rng.choice((text[at + 1] + text[at], "", text[at] * 2 + text[at + 1])) + text[at + 2 :]


def _dressed(rng: random.Random, intent: str, text: str) -> str:
    """The wording as somebody types it: openers, case, punctuation, a typo now and then."""
    if intent not in _BARE:
        if rng.random() < 0.2:
            text = rng.choice(_OPENERS) + text
        elif rng.random() < 0.1:
            text += rng.choice(_CLOSERS)
    named = intent == "user_name"  # the answer repeats the name as it is written
    if rng.random() < 0.06 and len(text) > 6 and not named:
        text = _typo(rng, text)
    if rng.random() < 0.65:
        text = text[:1].upper() + text[1:]
    elif rng.random() < 0.05 and not named:
        text = text.upper()
    text = re.sub(r"\bi\b", "I", text) if rng.random() < 0.6 else text
    asks = re.match(r"(?i)(\w+, )?(who|what|how|where|when|why|which|are|do|can|is|will|should|could|am|have)\b", text)
    end = rng.random()
    mark = "" if end < 0.3 else "?" if asks else "!" if end > 0.85 else "."
    return text if text[-1:] in "?.!" else text + mark


def _draw(rng: random.Random, intent: str) -> tuple[str, str, str]:
    """A user's text, the answer and the thought. Held-out wordings do not come."""
    about = intents()[intent]
    while True:
        text = rng.choice(rng.choice(_all_wordings(intent)))
        words = {name: rng.choice(values) for name, values in _WORDS.items()}
        text = text.format(**words)
        asked = _dressed(rng, intent, text)
        if plain(text) not in held_out_wordings() and plain(asked) not in held_out_wordings():
            break
    answer = rng.choice(about["answers"]).format(hint=rng.choice(HINTS), **words)
    return asked, answer, str(about["thought"]).format(**words)


def small_talk(rng: random.Random, intent: str | None = None) -> tuple[str, str, str]:
    """A user's text, the answer and the thought, of an intent or a random one."""
    return _draw(rng, intent or rng.choice(list(intents())))


def answers_of(intent: str, text: str) -> tuple[str, ...]:
    """Every answer that would be right, with every hint; of names, the one that the text has."""
    name = next((word for word in re.findall(r"\w+", text) if word in NAMES), "")
    return tuple(
        dict.fromkeys(answer.format(hint=hint, name=name) for answer in intents()[intent]["answers"] for hint in HINTS)
    )


def make_talk(rng: random.Random) -> Item:
    """One question of a random intent."""
    return talk_about(rng, rng.choice(list(intents())))


def talk_about(rng: random.Random, intent: str) -> Item:
    """One question of this intent. answer: all that would be right."""
    text, answer, thought = small_talk(rng, intent)
    messages = (
        {"role": "user", "content": text},
        {"role": "assistant", "content": answer, "reasoning_content": thought},
    )
    return Item(
        "talk",
        intent,
        messages,
        answers_of(intent, text),
        "one_of",
        deep=f"{thought} I answer in one or two sentences.",
    )


def make_mixed_talk(rng: random.Random) -> Item:
    """Two to four turns: a greeting, questions, thanks or goodbye."""
    every = list(intents())
    order = [rng.choice(("greeting", "good_morning", "good_evening", "user_name"))] if rng.random() < 0.6 else []
    order += rng.sample(every, rng.randint(1, 2))
    order += [rng.choice(("thanks", "goodbye", "praise"))] if rng.random() < 0.6 or len(order) < 2 else []
    messages: list[Message] = []
    item = None
    for intent in order:
        item = talk_about(rng, intent)
        messages += item.messages
    assert item is not None
    return replace(item, task="mixed", messages=tuple(messages))


_ASKS_NAME = (
    "what is my name", "do you remember my name", "who am I", "what's my name", "do you know my name", "say my name",
    "can you tell me my name", "what am I called", "tell me my name", "please say my name",
    "my name", "which name do I have",
)  # fmt: skip


def make_recall(rng: random.Random) -> Item:
    """The user asks for his name, which he has said before, or not."""
    known = rng.random() < 0.75
    told = talk_about(rng, "user_name")
    messages = list(told.messages) if known else []
    for _ in range(rng.choice((0, 0, 1, 2))):
        messages += talk_about(rng, rng.choice([name for name in intents() if name != "user_name"])).messages
    question = rng.choice(_ASKS_NAME)
    question = (question[:1].upper() + question[1:] if rng.random() < 0.7 else question) + rng.choice(("?", "?", ""))
    name = next(word for word in re.findall(r"\w+", told.messages[0]["content"]) if word in NAMES)
    thought, answer = (
        (f"The user is {name}.", f"Your name is {name}.")
        if known
        else ("The user did not say it.", "I do not know your name. What is it?")
    )
    messages += [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer, "reasoning_content": thought},
    ]
    return Item("talk", "recall", tuple(messages), (answer,), "one_of")
