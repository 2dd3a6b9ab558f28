"""The prompts of each step: made by a function, or lines of a file in an order of their own each epoch.

Which prompts a step has follows from the run's seed and the step's number alone, so a resumed run asks the same.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dsv4.encoding import Tokenizer
from dsv4.posttraining.chat import chat_prompt
from dsv4.posttraining.types import Effort, Prompt

_DRAWS = 100  # before a generator that repeats itself is told
_FIELDS = {"messages", "verifier", "answer", "domain", "effort", "key", "tools"}
Make = Callable[..., Prompt]


class Prompts(Protocol):
    """A source of prompts."""

    def batch(self, number: int, count: int) -> list[Prompt]:
        """`count` prompts with different keys: the same whenever they are asked for."""
        ...


@dataclass(frozen=True, slots=True)
class GeneratedPrompts:
    """make(rng, tokenizer, **options) gives one prompt. Raises ValueError where it keeps giving keys that are there."""

    make: Make
    tokenizer: Tokenizer
    options: Mapping[str, Any]
    seed: int

    def batch(self, number: int, count: int) -> list[Prompt]:
        rng, found = random.Random(f"prompts {self.seed} {number}"), dict[str, Prompt]()
        for _ in range(count):
            for _ in range(_DRAWS):
                prompt = self.make(rng, self.tokenizer, **self.options)
                if prompt.key not in found:
                    break
            else:
                raise ValueError(f"prompts: {_DRAWS} draws gave no prompt beside the {len(found)} that there are")
            found[prompt.key] = prompt
        return list(found.values())


@dataclass(frozen=True, slots=True)
class ListedPrompts:
    """Every prompt once in an epoch. Raises ValueError where there are fewer than a step asks for."""

    prompts: tuple[Prompt, ...]
    seed: int

    def batch(self, number: int, count: int) -> list[Prompt]:
        total = len(self.prompts)
        if count > total:
            raise ValueError(f"prompts: there are {total}, fewer than the {count} of a step")
        found: dict[str, Prompt] = {}
        for prompt in self._endless(number * count):
            found.setdefault(prompt.key, prompt)  # two epochs may meet in a batch
            if len(found) == count:
                return list(found.values())
        raise AssertionError("endless")

    def _endless(self, first: int) -> Iterator[Prompt]:
        epoch, at = divmod(first, len(self.prompts))
        while True:
            order = list(range(len(self.prompts)))
            random.Random(f"epoch {self.seed} {epoch}").shuffle(order)
            for i in order[at:]:
                yield self.prompts[i]
            epoch, at = epoch + 1, 0


def read_prompts(file: Path, tokenizer: Tokenizer) -> tuple[Prompt, ...]:
    """One prompt a line: {"messages": [...], "verifier": "number", "answer": 42} and, if wanted, domain ("default"),
    effort ("high"), key (the line's number) and tools (OpenAI function objects). Raises ValueError naming line and
    field."""
    if not file.is_file():
        raise ValueError(f"prompts.path: {file} is no file")
    found: dict[str, Prompt] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                prompt = _prompt(json.loads(line), str(number), tokenizer)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if prompt.key in found:
                raise ValueError(f"{where}: key {prompt.key!r} is there twice")
            found[prompt.key] = prompt
    if not found:
        raise ValueError(f"prompts.path: {file} holds no prompts")
    return tuple(found.values())


def _prompt(raw: Any, key: str, tokenizer: Tokenizer) -> Prompt:
    if not isinstance(raw, dict):
        raise ValueError(f"must be an object, got {raw!r:.60}")
    unknown = sorted(raw.keys() - _FIELDS)
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown field; known are {', '.join(sorted(_FIELDS))}")
    for name in ("messages", "verifier", "answer"):
        if name not in raw:
            raise ValueError(f"{name} is missing")
    if not isinstance(raw["messages"], list) or not raw["messages"]:
        raise ValueError("messages must be a list that is not empty")
    try:
        effort = Effort(raw.get("effort", Effort.HIGH))
    except ValueError:
        raise ValueError(f"effort must be one of {', '.join(Effort)}, got {raw['effort']!r}") from None
    return chat_prompt(
        tokenizer,
        str(raw.get("key", key)),
        raw["messages"],
        domain=str(raw.get("domain", "default")),
        effort=effort,
        functions=raw.get("tools", ()),
        verifier=raw["verifier"],
        answer=raw["answer"],
    )
