"""Plain English without a network: texts that come with Python, and simple stories made from a grammar."""

import codecs
import importlib
import random
import re
import sysconfig
import zlib
from functools import lru_cache
from pathlib import Path

from dsv4.training.documents import Document
from recipes.nano.items.item import HELD_OUT_SHARE, Item, Message
from recipes.nano.items.warm_up import TextCodec
from recipes.nano.items.words import ANIMALS, COLOURS, DAYS, DRINKS, FOODS, JOBS, NAMES, PLACES, ROOMS, SPORTS, THINGS

_DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)


def document(rng: random.Random, codec: TextCodec, length: int = 1024, stories: float = 0.5) -> Document:
    """Text to learn on all positions, cut after `length` tokens: stories (this share of the documents), or texts that
    come with Python."""
    made = rng.random() < stories
    tokens = [codec.bos_id]
    while len(tokens) < length:
        text = story(rng) if made else rng.choice(python_texts())
        tokens += [*codec.encode_text(text), codec.eos_id]
    return Document(tokens[:length])


@lru_cache
def python_texts(held_out: bool = False) -> tuple[str, ...]:
    """Paragraphs of docstrings, help topics, the licence and the Zen of this Python: English, without code. held_out:
    those that training does not see."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts: list[str] = []
    for file in sorted(folder.glob("*.py")):
        texts += _DOCSTRING.findall(file.read_text(encoding="utf-8", errors="ignore"))
    texts += [text for _, text in sorted(importlib.import_module("pydoc_data.topics").topics.items())]
    licence = folder / "LICENSE.txt"
    if licence.exists():
        texts.append(licence.read_text(encoding="utf-8"))
    # importing `this` prints it; its text is stored turned by 13 letters
    zen = re.search(r's = """(.*?)"""', (folder / "this.py").read_text(encoding="utf-8"), re.DOTALL)
    if zen:
        texts.append(codecs.decode(zen[1], "rot13"))
    found = [" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text)]
    return tuple(
        dict.fromkeys(
            part
            for part in found
            if _is_english(part) and (zlib.crc32(part.encode()) % HELD_OUT_SHARE == 0) == held_out
        )
    )


def _is_english(text: str) -> bool:
    """A sentence or more, nearly all letters."""
    if not 60 <= len(text) <= 2000 or ">>>" in text or not text.isascii():
        return False
    return sum(c.isalpha() or c == " " for c in text) > 0.93 * len(text) and text[0].isupper()


_OPENINGS = (
    "Once there was a {job} named {n} who lived in {p}.",
    "{n} was a young {job} in {p}.",
    "In {p} there lived a {job}. The name of the {job} was {n}.",
    "{n} lived in a small house in {p} and worked as a {job}.",
)
_LOSSES = (
    "On {d} {n} lost a {c} {t}.",
    "On {d} the {c} {t} of {n} was gone.",
    "{n} had a {c} {t}, but on {d} it was not there.",
)
_SEARCHES = (
    "{n} looked in the {r1}, but there was only a {a}.",
    "First {n} went to the {r1}. There sat a {a}, and nothing else.",
    "{n} searched the {r1} and found a {a}.",
)
_FRIENDS = (
    "Then {n} asked {m} for help.",
    "{m} was a friend of {n} and wanted to help.",
    "{n} told {m} about it, and {m} came at once.",
)
_ENDS = (
    "Together they found the {t} in the {r2}.",
    "{m} found the {t} in the {r2}.",
    "The {t} was in the {r2} all the time.",
)
_THANKS = (
    "{n} was happy and gave {m} some {f}.",
    "{n} thanked {m} with {f}.",
    "To say thanks, {n} made {f} for {m}.",
)
_FREE = (
    "It was a long day.",
    "The sun was high and the wind was warm.",
    "They drank {dr} and talked until it was dark.",
    "{n} liked to play {s} after work.",
    "Nobody else was there.",
    '"Do not worry," said {m}.',
    '"Where can it be?" asked {n}.',
    "The next day they played {s}.",
    "{m} laughed and drank some {dr}.",
)
_QUESTIONS = (
    (("Who lost a {t}?", "Whose {t} was lost?"), "{n} lost the {t}.", "n"),
    (("Where was the {t}?", "Where did they find the {t}?"), "The {t} was in the {r2}.", "r2"),
    (("What colour was the {t}?", "Which colour had the {t}?"), "The {t} was {c}.", "c"),
    (("Who helped {n}?", "Who came to help?"), "{m} helped {n}.", "m"),
    (("What did {m} get?", "What did {n} give {m}?"), "{m} got {f}.", "f"),
    (("Where does {n} live?", "In which city does {n} live?"), "{n} lives in {p}.", "p"),
    (("What is {n}'s job?", "What does {n} work as?"), "{n} is a {job}.", "job"),
    (("On which day was the {t} lost?", "When was the {t} lost?"), "The {t} was lost on {d}.", "d"),
    (("Which animal was in the {r1}?", "What was in the {r1}?"), "A {a} was in the {r1}.", "a"),
)


def _cast(rng: random.Random) -> dict[str, str]:
    n, m = rng.sample(NAMES, 2)
    r1, r2 = rng.sample(ROOMS, 2)
    pools = {"job": JOBS, "p": PLACES, "c": COLOURS, "t": THINGS, "a": ANIMALS, "d": DAYS, "f": FOODS, "dr": DRINKS,
             "s": SPORTS}  # fmt: skip
    return {"n": n, "m": m, "r1": r1, "r2": r2} | {key: rng.choice(pool) for key, pool in pools.items()}


def _told(rng: random.Random, cast: dict[str, str]) -> str:
    """Six sentences that carry the story, and up to four that do not matter. One person, place and thing each."""
    parts = [rng.choice(part) for part in (_OPENINGS, _LOSSES, _SEARCHES, _FRIENDS, _ENDS, _THANKS)]
    for sentence in rng.sample(_FREE, rng.randint(0, 4)):
        # not before the friend has come
        parts.insert(rng.randint(4 if "{m}" in sentence or "They" in sentence else 1, len(parts)), sentence)
    return " ".join(parts).format(**cast)


def story(rng: random.Random) -> str:
    """A story of 6 to 11 sentences."""
    return _told(rng, _cast(rng))


def make_story(rng: random.Random, turns: int | None = None) -> Item:
    """A story and one to four questions about it. turns: how many; None for 1 to 4."""
    cast = _cast(rng)
    text = _told(rng, cast)
    messages: list[Message] = []
    key, answer = "", ""
    for questions, form, asked in rng.sample(_QUESTIONS, turns or rng.randint(1, 4)):
        question = rng.choice(questions).format(**cast)
        key, answer = cast[asked], form.format(**cast)
        messages += [
            {"role": "user", "content": question if messages else f"{text}\n{question}"},
            {"role": "assistant", "content": answer, "reasoning_content": f"In the story: {answer}"},
        ]
    deep = f"In the story: {answer} I read it again: {answer} So the answer is {key}."
    return Item("facts", "story", tuple(messages), key, "contains", deep=deep, level=1)
