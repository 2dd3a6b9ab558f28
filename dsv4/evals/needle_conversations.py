"""Long conversations with several answers to one request, made here in the form of OpenAI's MRCR data.

A user asks for short texts, again and again; the same request comes `needles` times, between others of the same kinds
and of the same topics, so that only the order tells its answers apart. At the end one of them is asked for.
"""

import json
import random
from typing import Any

from dsv4.evals.long_prompts import Count, fit, sentences
from dsv4.evals.words import THINGS, letters

KINDS = ("poem", "short story", "blog post", "news article", "riddle", "speech", "letter", "song")
QUESTION = (
    "Prepend {mark} to the {nth} (1 indexed) {kind} about {topic}. Do not include any other text in your response."
)


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th ... of a number."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def needle_conversation(tokens: int, needles: int, count: Count, seed: str) -> dict[str, Any]:
    """A row of MRCR whose prompt and answer have about `tokens` tokens. Raises ValueError if that is too few."""
    return fit(lambda others: _row(others, needles, seed), lambda row: row["prompt"] + row["answer"], tokens, count)


def _row(others: int, needles: int, seed: str) -> dict[str, Any]:
    chance = random.Random(seed)
    mark = letters(chance, 10, "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789")
    kind, topic = chance.choice(KINDS), chance.choice(THINGS)
    wanted = chance.randrange(needles)
    asked = [(kind, topic)] * needles
    for number in range(others):  # half of them share the kind or the topic of the needles
        other_topic = chance.choice([each for each in THINGS if each != topic])
        other_kind = chance.choice([each for each in KINDS if each != kind])
        asked.append([(kind, other_topic), (other_kind, topic), (other_kind, other_topic)][number % 3])
    order = list(range(len(asked)))
    chance.shuffle(order)
    messages: list[dict[str, str]] = []
    texts: list[str] = []
    for place in order:
        its_kind, its_topic = asked[place]
        text = _text(its_kind, its_topic, chance)
        messages.append({"role": "user", "content": f"write a {its_kind} about the {its_topic}"})
        messages.append({"role": "assistant", "content": text})
        if place < needles:
            texts.append(text)
    question = QUESTION.format(mark=mark, nth=ordinal(wanted + 1), kind=kind, topic=f"the {topic}")
    messages.append({"role": "user", "content": question})
    prompt = json.dumps(messages)
    return {
        "prompt": prompt, "answer": mark + texts[wanted], "random_string_to_prepend": mark, "n_needles": needles,
        "desired_msg_index": next(i for i, m in enumerate(messages) if m["content"] == texts[wanted]),
        "total_messages": len(messages), "n_chars": len(prompt),
    }  # fmt: skip


def _text(kind: str, topic: str, chance: random.Random) -> str:
    body = sentences(chance.randrange(4, 9), chance.randrange(2**32))
    body.insert(chance.randrange(len(body)), f"This {kind} is about the {topic}.")
    return " ".join(body)
