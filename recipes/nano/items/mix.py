"""Items of all families as training documents: conversations in the prompt format, in all modes.

[[data.sources]]
name = "conversations"
kind = "generator"
path = "recipes.nano.items.mix:document"
options = { length = 1024, weights = { arithmetic = 3, "tools.unseen" = 1 } }
"""

import importlib
import inspect
import pkgutil
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from dsv4.encoding import Tokenizer, render_segments, served
from dsv4.training.documents import Document
from recipes.nano import items
from recipes.nano.items.item import Item, Maker, Message, draw
from recipes.nano.items.needles import LONGEST, SHORTEST
from recipes.nano.items.talk import talk_about

Mode = Literal["chat", "thinking", "max"]
# how often a family's items are drawn; a family's makers share it. Measured: items of tools are 680 tokens long, others
# 40 to 150, so that these weights give tools about a third of the tokens
WEIGHTS = {
    "arithmetic": 0.22,
    "ordering": 0.12,
    "problems": 0.07,
    "state": 0.08,
    "countdown": 0.07,
    "tools": 0.09,
    "facts": 0.19,
    "needles": 0.03,
    "english": 0.02,
    "talk": 0.09,
    "plain": 0.04,
    "quick": 0.02,
    "copies": 0.02,
}
SYSTEMS = (
    "You are a helpful assistant.",
    "You are nano.",
    "You are a helpful assistant. Answer briefly.",
    "Be friendly and brief.",
)
_SYSTEM_SHARE, _GREETING_SHARE = 0.08, 0.06
# shares of one to four items in a conversation: earlier thoughts are not shown again, so thinking has fewer
_TURNS = {"chat": (0.4, 0.3, 0.2, 0.1), "thinking": (0.8, 0.12, 0.05, 0.03), "max": (0.9, 0.1, 0.0, 0.0)}
_SILENT_SHARE = 0.12  # of conversations with tools: the client did not send earlier thoughts back, as many do not
_TRIES = 20
_BESIDE_NEEDLES = 240  # tokens of questions, answers and the instruction for the effort


@lru_cache
def makers() -> dict[str, Maker]:
    """All makers by name: `family.kind` for the function `make_kind` of the module `family`."""
    found: dict[str, Maker] = {}
    for info in pkgutil.iter_modules(items.__path__):
        module = importlib.import_module(f"{items.__name__}.{info.name}")
        for name, made in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("make_") and made.__module__ == module.__name__:
                found[f"{info.name}.{name.removeprefix('make_')}"] = made
    return found


def table(weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """The share of each maker. weights: by family, or by `family.kind`, which replaces its part of the family's weight;
    None = WEIGHTS. Raises ValueError naming a key that is neither, or a weight below 0."""
    given = dict(WEIGHTS if weights is None else weights)
    families = {name.partition(".")[0] for name in makers()}
    for key, weight in given.items():
        if key not in families and key not in makers():
            raise ValueError(f"weights.{key}: no such family or maker; there are {', '.join(makers())}")
        if weight < 0:
            raise ValueError(f"weights.{key} must be at least 0, got {weight}")
    out: dict[str, float] = {}
    for name in makers():
        family = name.partition(".")[0]
        share = given.get(family, 0.0) / sum(other.startswith(family + ".") for other in makers())
        out[name] = given.get(name, share)
    total = sum(out.values())
    if not total:
        raise ValueError("weights: at least one must be above 0")
    return {name: weight / total for name, weight in out.items() if weight}


def document(
    rng: random.Random,
    codec: Tokenizer,
    length: int = 1024,
    weights: Mapping[str, float] | None = None,
    chat: float = 0.3,
    deep: float = 0.1,
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
) -> Document:
    """A conversation of one to four items, of which exactly what the assistant says is learned.

    Conversations longer than `length` tokens are drawn again, and cut if none of 20 fits. chat, deep: shares of
    conversations without thinking and with the effort `max`; the others think. arguments: of makers, such as
    `{"needles.needle" = { length = 4096 }}`; without it needles lie in texts of 256 to about `length` tokens.
    Raises ValueError for shares outside [0, 1] or unknown weights.
    """
    if min(chat, deep) < 0 or chat + deep > 1:
        raise ValueError(f"chat and deep must be at least 0, together at most 1; got {chat} and {deep}")
    mode: Mode = rng.choices(("chat", "max", "thinking"), (chat, deep, max(0.0, 1 - chat - deep)))[0]
    longest = max(SHORTEST, min(LONGEST, length - _BESIDE_NEEDLES))
    options = {"needles.needle": {"length": int(SHORTEST * (longest / SHORTEST) ** rng.random())}} | dict(
        arguments or {}
    )
    shares = table(weights)
    tokens: list[int] = []
    silent = False
    for _ in range(_TRIES):
        messages = conversation(rng, mode, shares, options)
        silent = mode != "chat" and bool(messages[0].get("tools")) and rng.random() < _SILENT_SHARE
        if silent:
            end = rng.choice([i for i, message in enumerate(messages) if message["role"] == "assistant"])
            messages = [*map(_without_thought, messages[:end]), messages[end]]
        # a server shows no thought of a finished answer when it asks for a title
        tokens = encode(codec, messages, "chat" if messages[-2].get("task") == "title" else mode)
        if len(tokens) <= length:
            break
    tokens = tokens[:length]
    return Document(tokens, said(tokens, codec, last=silent))


def conversation(
    rng: random.Random,
    mode: Mode,
    shares: Mapping[str, float],
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Message]:
    """Messages of a training conversation. Items with tools, a task or a system text stay alone."""
    count = rng.choices((1, 2, 3, 4), _TURNS[mode])[0]
    drawn: list[Item] = []
    for _ in range(count):
        item = _drawn(rng, shares, options or {})
        if drawn and not _joins(item):
            continue
        drawn.append(item)
        if not _joins(item):
            break
    if _joins(drawn[0]):
        if rng.random() < _GREETING_SHARE:
            drawn.insert(0, talk_about(rng, rng.choice(("greeting", "good_morning", "user_name"))))
        if mode == "chat" and rng.random() < _GREETING_SHARE:
            drawn.append(talk_about(rng, rng.choice(("thanks", "goodbye", "praise"))))
    messages = [message for item in drawn[:-1] for message in item.messages]
    messages += messages_of(drawn[-1], mode == "max")
    if rng.random() < _SYSTEM_SHARE:
        text = rng.choice(SYSTEMS)
        if messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": text})
        elif not messages[0]["content"]:
            messages[0] = messages[0] | {"content": text}
    return messages


def _without_thought(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "reasoning_content"}


def _drawn(rng: random.Random, shares: Mapping[str, float], options: Mapping[str, Mapping[str, Any]]) -> Item:
    name = rng.choices(list(shares), list(shares.values()))[0]
    make, given = makers()[name], options.get(name, {})
    return draw(lambda r: make(r, **given), rng)


def _joins(item: Item) -> bool:
    return not item.tools and all("task" not in m and m["role"] in ("user", "assistant") for m in item.messages)


def messages_of(item: Item, deep: bool = False) -> list[Message]:
    """The item's conversation as the encoding and the HTTP interface take it: tools in a system message. deep: the
    last thought is the one for the effort `max`."""
    messages = [dict(message) for message in item.messages]
    if deep and item.deep is not None:
        messages[-1]["reasoning_content"] = item.deep
    if item.tools:
        if messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": ""})
        messages[0]["tools"] = list(item.tools)
    return messages


def prompt_of(item: Item) -> list[Message]:
    """What a model is given to answer the item: all up to the last text of the user, or up to a task's token."""
    messages = messages_of(item)
    if messages[-2].get("task"):
        return messages[:-1]
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    return messages[: last + 1]


def encode(codec: Tokenizer, messages: Iterable[Message], mode: Mode) -> list[int]:
    """Token ids of a conversation in a mode. A call without arguments has no empty line: so a server writes it when it
    shows the conversation again."""
    effort, thinking = "max" if mode == "max" else None, "chat" if mode == "chat" else "thinking"
    dialect = replace(codec.dialect, empty_line=served(codec.dialect).empty_line)
    return codec.encode_segments(render_segments(list(messages), thinking, reasoning_effort=effort, dialect=dialect))


def said(tokens: list[int], codec: Tokenizer, *, last: bool = False) -> list[float]:
    """1 for what the assistant says, the end of its turn included; 0 for the rest. last: only its last turn counts.

    A turn begins behind `<｜Assistant｜>` and the mark that opens or closes the thought, or behind a task token.
    """
    assistant = codec.token_id(codec.dialect.assistant)
    tasks = {codec.token_id(text) for _, text in codec.dialect.tasks}
    learned, start = [0.0] * len(tokens), len(tokens)
    for i, token in enumerate(tokens):
        if token == assistant:
            start = i + 2
        elif token in tasks:
            start = i + 1
        learned[i] = float(i >= start)
        if token == codec.eos_id:
            start = len(tokens)
        if last and learned[i] and not (i and learned[i - 1]):
            learned[:i] = [0.0] * i
    return learned
