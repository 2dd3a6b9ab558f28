"""Small talk, who the model is, and what it cannot do: wordings composed from the patterns in the folder `talk`."""

import json
import random
import re
import tomllib
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from recipes.nano.items.item import Item, Message
from recipes.nano.items.patterns import Pattern, fill, parse, slots
from recipes.nano.items.typed import typed
from recipes.nano.items.words import (
    ANIMALS,
    COLOURS,
    DAYS,
    DRINKS,
    FOODS,
    INSTRUMENTS,
    JOBS,
    NAMES,
    PLACES,
    ROOMS,
    SPORTS,
    THINGS,
)

FOLDER = Path(__file__).parent / "talk"
HELD_OUT = FOLDER.with_name("talk_held_out.jsonl")
FREQUENT = 0.4  # of what a user says of an intent: the short wordings of the folder `frequent`, where it has some
HINTS = (
    "But I can do sums for you.",
    "But I can sort or compare numbers.",
    "But I can find facts in a text that you give me.",
    "Ask me for a sum, or for a fact in a text.",
    "Give me a sum or a number puzzle instead.",
)
_WORDS = {
    "thing": THINGS, "animal": ANIMALS, "food": FOODS, "name": NAMES, "city": PLACES, "colour": COLOURS, "day": DAYS,
    "drink": DRINKS, "instrument": INSTRUMENTS, "job": JOBS, "room": ROOMS, "sport": SPORTS,
    "age": list(map(str, range(5, 99))), "count": list(map(str, range(2, 1000))),
    "year": list(map(str, range(900, 2030))),
}  # fmt: skip
# words that a question has as well with them as without
_FILLERS = frozenset(
    ("please", "so", "well", "um", "hey", "hi", "hello", "ok", "okay", "nano", "now", "just", "kindly", "and")
)  # fmt: skip
_LONG_FORMS = tuple((re.compile(short), long) for short, long in (
    (r"\b(what|who|where|how|that|it|there)'?s\b", r"\1 is"), (r"\bi'?m\b", "i am"), (r"\byou're\b", "you are"),
    (r"\bcan('?t|not)\b", "can not"), (r"n'?t\b", " not"), (r"\blet's\b", "let us"),
))  # fmt: skip
_MARKS = re.compile(r"[^\w\s]")


@dataclass(frozen=True, slots=True)
class Intent:
    """says: patterns of what a user says. answers: with words in braces, and {hint}. bare: nothing stands before it.
    weight: how often it comes, compared with the others. frequent: short wordings that people type most."""

    says: tuple[str, ...]
    thought: str
    answers: tuple[str, ...]
    bare: bool = False
    weight: float = 1.0
    frequent: tuple[str, ...] = ()

    @property
    def copied(self) -> set[str]:
        """Names of the words that the answer or the thought repeats as the user writes them."""
        return {name for text in (*self.answers, self.thought) for name in slots(text)} - {"hint"}


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


@lru_cache
def intents() -> dict[str, Intent]:
    """All intents by name. Raises ValueError for a name that two files have, and for frequent wordings of none."""
    found: dict[str, Intent] = {}
    for file in sorted(FOLDER.glob("*.toml")):
        for name, row in ({} if file.stem in ("words", "phrases") else _read(file.stem)).items():
            if name in found:
                raise ValueError(f"{file.name}: the intent {name} is in another file too")
            found[name] = Intent(**row | {key: tuple(row[key]) for key in ("says", "answers")})
    for file in sorted((FOLDER / "frequent").glob("*.toml")):
        for name, row in _read(f"frequent/{file.stem}").items():
            if name not in found or found[name].frequent:
                raise ValueError(f"frequent/{file.name}: {name} is no intent, or stands in another file too")
            found[name] = replace(found[name], frequent=tuple(row["says"]))
    return found


@lru_cache
def word_lists() -> dict[str, list[str]]:
    """What the words in braces stand for."""
    lists = {name: list(values) for name, values in _WORDS.items()}
    for name, text in _read("words")["words"].items():
        lists[name] = [*lists.get(name, ()), *(" ".join(word.split()) for word in text.split(","))]
    return lists


@lru_cache
def phrases() -> dict[str, str]:
    """Alternatives that have a name in the patterns."""
    return _read("phrases")["phrases"]


@lru_cache
def patterns(intent: str) -> tuple[Pattern, ...]:
    """What a user says, with words in braces."""
    one = intents()[intent]
    return tuple(parse(pattern, phrases()) for pattern in (*one.says, *one.frequent))


@lru_cache
def _weights(intent: str) -> list[float]:
    """A pattern with more texts comes more often, but not in proportion; the frequent ones share FREQUENT."""
    known = len(intents()[intent].says)
    rest = [min(pattern.size, 400) ** 0.5 for pattern in patterns(intent)[:known]]
    short = len(patterns(intent)) - known
    return list(accumulate([*rest, *[sum(rest) * FREQUENT / (1 - FREQUENT) / max(short, 1)] * short]))


@lru_cache
def held_out_wordings() -> dict[str, str]:
    """Wordings, as `plain` writes them, that no training item has, with their intents."""
    return {plain(row["wording"]): row["intent"] for row in _held_out_rows()}


@lru_cache
def _held_out_rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]


@lru_cache
def _held_out_cores() -> frozenset[str]:
    return frozenset(core(row["wording"]) for row in _held_out_rows())


def plain(text: str) -> str:
    """A wording without case, punctuation and double blanks."""
    return " ".join(_MARKS.sub(" ", text.lower()).split())


def core(text: str) -> str:
    """The plain wording without short forms and fillers, where three words or more are left."""
    text = text.lower()
    for short, long in _LONG_FORMS:
        text = short.sub(long, text)
    kept = [word for word in plain(text).split() if word not in _FILLERS]
    return " ".join(kept) if len(kept) > 2 else plain(text)


def held_out(text: str) -> bool:
    """Whether the wording is held out of training, also with fillers or in short form."""
    return plain(text) in held_out_wordings() or core(text) in _held_out_cores()


def _draw(rng: random.Random, name: str) -> tuple[str, dict[str, str]]:
    """What a user types, and the words of the lists in it. Held-out wordings do not come."""
    intent, lists = intents()[name], word_lists()
    while True:
        text, words = rng.choices(patterns(name), cum_weights=_weights(name))[0].draw(rng), dict[str, str]()
        # a slip of the keyboard must not change the words that the answer repeats: marks stand for them
        marks = {word: chr(0xE000 + i) for i, word in enumerate(sorted(intent.copied))}
        raw = fill(rng, text, lists, words | marks)
        asked = typed(rng, raw, bare=intent.bare)
        for word, mark in marks.items():
            words[word] = fill(rng, f"{{{word}}}", lists, {})
            raw, asked = raw.replace(mark, words[word]), asked.replace(mark, words[word])
        if not held_out(raw) and not held_out(asked):
            return asked, words


def _answers(intent: Intent, words: dict[str, str]) -> tuple[str, ...]:
    texts = [answer.format(hint=hint, **words) for answer in intent.answers for hint in HINTS]
    return tuple(dict.fromkeys(texts))


def any_intent(rng: random.Random) -> str:
    """The name of an intent, by weight."""
    return rng.choices(list(intents()), [intent.weight for intent in intents().values()])[0]


def small_talk(rng: random.Random, intent: str) -> tuple[str, str, str]:
    """A user's text of the intent, the answer and the thought."""
    item = talk_about(rng, intent)
    return item.messages[0]["content"], item.messages[1]["content"], item.messages[1]["reasoning_content"]


def answers_of(intent: str, text: str) -> tuple[str, ...]:
    """Every answer that would be right, with every hint; of names, the one that the text has. Raises KeyError for an
    intent that repeats other words."""
    names = set(word_lists()["name"])
    name = next((word for word in re.findall(r"\w+", text) if word in names), "")
    return _answers(intents()[intent], {"name": name})


def make_talk(rng: random.Random) -> Item:
    """One question of a random intent."""
    return talk_about(rng, any_intent(rng))


def talk_about(rng: random.Random, name: str) -> Item:
    """One question of this intent. answer: all that would be right."""
    return _talk(rng, name)[0]


def _talk(rng: random.Random, name: str) -> tuple[Item, dict[str, str]]:
    """An item of the intent, and the words of the lists in it."""
    intent = intents()[name]
    text, words = _draw(rng, name)
    answer = rng.choice(intent.answers).format(hint=rng.choice(HINTS), **words)
    thought = intent.thought.format(**words)
    messages = (
        {"role": "user", "content": text},
        {"role": "assistant", "content": answer, "reasoning_content": thought},
    )
    deep = f"{thought} I answer in one or two sentences."
    return Item("talk", name, messages, _answers(intent, words), "one_of", deep=deep), words


def make_mixed_talk(rng: random.Random) -> Item:
    """Two to four turns: a greeting, questions, thanks or goodbye."""
    order = [rng.choice(("greeting", "good_morning", "good_evening", "user_name"))] if rng.random() < 0.6 else []
    order += [any_intent(rng) for _ in range(rng.randint(1, 2))]
    order += [rng.choice(("thanks", "goodbye", "praise"))] if rng.random() < 0.6 or len(order) < 2 else []
    messages: list[Message] = []
    item = None
    for intent in order:
        item = talk_about(rng, intent)
        messages += item.messages
    assert item is not None
    return replace(item, task="mixed", messages=tuple(messages))


# what is asked about together with another thing, in one message: each part has its answer, in the order asked
_JOINED = (
    "name", "who_are_you", "which_model", "who_made_you", "how_trained", "how_big", "age", "where_live", "languages",
    "how_are_you", "license", "joke", "human", "can_math", "can_sort", "can_count", "can_tools", "memory", "feelings",
    "favourite", "family", "hobby", "dsv4", "coin", "pick", "fun_fact", "riddle", "speed", "smart",
    "weather_without_tool", "time", "news", "poem", "translate", "code", "internet",
)  # fmt: skip
_ALIKE = ({"name", "who_are_you", "which_model", "human"}, {"joke", "riddle", "fun_fact"}, {"coin", "pick"})
_JOINTS = (" and ", " and ", ", and ", ". ", "? ", ". And ", "? And ", ", ", " and also ", ". Also, ", "\n")
_LONGEST_PART = 9  # words


def make_two(rng: random.Random) -> Item:
    """Two questions in one message; both are answered."""
    while True:
        names = rng.sample(_JOINED, 2)
        raw = rng.choice(_JOINTS).join(_part(rng, name) for name in names)
        asked = typed(rng, raw, closers=False)
        if not (any(set(names) <= alike for alike in _ALIKE) or held_out(raw) or held_out(asked)):
            break
    both = [intents()[name] for name in names]
    thought = " ".join(intent.thought for intent in both)
    said = [rng.choice(intent.answers).format(hint=rng.choice(HINTS)) for intent in both]
    rights = tuple(f"{first} {second}" for first in _answers(both[0], {}) for second in _answers(both[1], {}))
    messages = (
        {"role": "user", "content": asked},
        {"role": "assistant", "content": " ".join(said), "reasoning_content": thought},
    )
    return Item("talk", "two", messages, rights, "one_of", deep=f"{thought} I answer both, one after the other.")


def _part(rng: random.Random, name: str) -> str:
    """A short wording of the intent without marks at its end."""
    while True:
        pattern = rng.choices(patterns(name), cum_weights=_weights(name))[0]
        text = fill(rng, pattern.draw(rng), word_lists(), {})
        if len(text.split()) <= _LONGEST_PART and not held_out(text) and text[-1:].isalnum():
            return text


# what is asked for again, and how: the answer is another one
_AGAIN = ("joke", "riddle", "fun_fact", "pick", "coin")
_ASKS_AGAIN = (
    "another one", "another one please", "one more", "one more please", "again", "another", "more", "again please",
    "do you have another one", "do you know another one", "give me another one", "tell me another one", "got more",
    "and another one", "next one", "another one!", "do it again", "once more", "can i have another one",
    "got another one",
)  # fmt: skip
_ASKS_LAST = (
    "what did i just say", "what did i say", "what did i just ask", "what was my last message", "repeat what i said",
    "what did i write", "what was my question", "what did i ask you", "can you repeat my question",
)  # fmt: skip


def make_again(rng: random.Random) -> Item:
    """A joke and the like, then another one; or what the user said before."""
    name = rng.choice(_AGAIN if rng.random() < 0.7 else _JOINED)
    first = talk_about(rng, name)
    before, given = (message["content"] for message in first.messages)
    if name in _AGAIN:
        others = tuple(answer for answer in _answers(intents()[name], {}) if name == "coin" or answer != given)
        asked, thought, answer = rng.choice(_ASKS_AGAIN), "The user wants another one.", rng.choice(others)
    else:
        others = (f"You said: {before}",)
        asked, thought, answer = rng.choice(_ASKS_LAST), "The user wants to hear the last message.", others[0]
    messages = (
        *first.messages,
        {"role": "user", "content": typed(rng, asked, bare=True)},
        {"role": "assistant", "content": answer, "reasoning_content": thought},
    )
    return Item("talk", "again", messages, others, "one_of", deep=f"{thought} I look at what was said before.")


_ASKS_NAME = (
    "what is my name", "do you remember my name", "who am I", "what's my name", "do you know my name", "say my name",
    "can you tell me my name", "what am I called", "tell me my name", "please say my name",
    "my name", "which name do I have",
)  # fmt: skip


def make_recall(rng: random.Random) -> Item:
    """The user asks for his name, which he has said before, or not."""
    known = rng.random() < 0.75
    told, words = _talk(rng, "user_name")
    name = words["name"]
    messages = list(told.messages) if known else []
    for _ in range(rng.choice((0, 0, 1, 2))):
        messages += talk_about(rng, rng.choice([one for one in intents() if one != "user_name"])).messages
    question = rng.choice(_ASKS_NAME)
    question = (question[:1].upper() + question[1:] if rng.random() < 0.7 else question) + rng.choice(("?", "?", ""))
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
