"""The prompts of each step: made by a function, or lines of a file in an order of their own each epoch.

Which prompts a step has follows from the run's seed and the step's number alone, so a resumed run asks the same.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dsv4.encoding import Tokenizer
from dsv4.encoding.conversation import check_functions, read_messages
from dsv4.encoding.messages import expect_text
from dsv4.posttraining.chat import chat_prompt
from dsv4.posttraining.types import Effort, Prompt
from dsv4.training.documents import call_named
from dsv4.training.settings import SourceSettings
from dsv4.training.source_texts import objects_of

_DRAWS = 100  # before a generator that repeats itself is told
_FIELDS = {"messages", "verifier", "answer", "rubric", "domain", "effort", "key", "tools"}
Make = Callable[..., Prompt]


class Prompts(Protocol):
    """A source of prompts."""

    def batch(self, number: int, count: int) -> list[Prompt]:
        """`count` prompts with different keys: the same whenever they are asked for."""
        ...


@dataclass(frozen=True, slots=True)
class GeneratedPrompts:
    """make(rng, tokenizer, **options) gives one prompt. name: of the function, for messages. Raises ValueError where it
    raises anything, gives something else, or keeps giving keys that are there."""

    name: str
    make: Make
    tokenizer: Tokenizer
    options: Mapping[str, Any]
    seed: int

    def batch(self, number: int, count: int) -> list[Prompt]:
        rng, found = random.Random(f"prompts {self.seed} {number}"), dict[str, Prompt]()
        for _ in range(count):
            for _ in range(_DRAWS):
                made = call_named(self.name, self.make, rng, self.tokenizer, **self.options)
                prompt = _checked(made, self.name, self.tokenizer.vocab_size)
                if prompt.key not in found:
                    break
            else:
                raise ValueError(f"{self.name}: {_DRAWS} draws gave no prompt beside the {len(found)} that there are")
            found[prompt.key] = prompt
        return list(found.values())


def _checked(made: Any, name: str, vocabulary: int) -> Prompt:
    """A prompt that a function has made, as far as an engine and a log can take it."""
    if not isinstance(made, Prompt):
        raise ValueError(f"{name} returned {type(made).__name__}; it must return a Prompt")
    if not isinstance(made.key, str) or not isinstance(made.domain, str):
        raise ValueError(f"{name}: key and domain must be strings, got {made.key!r} and {made.domain!r}")
    where = f"{name}: prompt {made.key}"
    if not isinstance(made.effort, Effort):
        raise ValueError(f"{where}: effort must be an Effort, got {made.effort!r}")
    try:
        made.key.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: key {made.key!r} is no text: {error.reason}") from None
    wrong = [token for token in made.tokens if type(token) is not int or not 0 <= token < vocabulary]
    if wrong:
        raise ValueError(f"{where}: tokens must be whole numbers in [0, {vocabulary}), got {wrong[0]!r}")
    return made


@dataclass(frozen=True, slots=True)
class ListedPrompts:
    """Every prompt once in an epoch. Raises ValueError where there are fewer than a step asks for."""

    prompts: tuple[Prompt, ...]
    seed: int

    def batch(self, number: int, count: int) -> list[Prompt]:
        total = len(self.prompts)
        if count > total:
            raise ValueError(f"prompts: there are {total}, fewer than the {count} that a step may ask")
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
    """One prompt a line: {"messages": [...], "verifier": "number", "answer": 42}, or a rubric instead or beside, and,
    if wanted, domain ("default"), effort ("high"), key (the line's number) and tools (OpenAI's, or their function
    objects alone). Raises ValueError naming line and field."""
    if not file.is_file():
        raise ValueError(f"prompts.path: {file} is no file")
    found: dict[str, Prompt] = {}
    source = SourceSettings("prompts", "messages", str(file))
    for where, raw in objects_of(source, file, "no prompt"):
        try:
            prompt = _prompt(raw, where.removeprefix(f"{file}, line "), tokenizer)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if prompt.key in found:
            raise ValueError(f"{where}: key {prompt.key!r} is there twice")
        found[prompt.key] = prompt
    if not found:
        raise ValueError(f"prompts.path: {file} holds no prompts")
    return tuple(found.values())


def _functions(tools: Any) -> list[Mapping[str, Any]]:
    """The function objects of a line's tools, which stand alone or, as in OpenAI's API, under the key `function`."""
    wrapped = isinstance(tools, list) and any(isinstance(tool, Mapping) and "function" in tool for tool in tools)
    check_functions(tools, "function" if wrapped else "")
    return [tool["function"] for tool in tools] if wrapped else list(tools)


def _prompt(raw: Mapping[str, Any], key: str, tokenizer: Tokenizer) -> Prompt:
    unknown = sorted(raw.keys() - _FIELDS)
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown field; known are {', '.join(sorted(_FIELDS))}")
    ruled = "rubric" not in raw or "verifier" in raw or "answer" in raw
    for name in ("messages", *(("verifier", "answer") if ruled else ())):
        if name not in raw:
            raise ValueError(f"{name} is missing")
    messages = read_messages(raw["messages"])
    if not messages:
        raise ValueError("messages must be a list that is not empty")
    if messages[-1]["role"] == "assistant":
        raise ValueError("messages: the last one is an answer; a prompt ends where the policy is to answer")
    functions = _functions(raw.get("tools") or [])
    try:
        effort = Effort(raw.get("effort", Effort.HIGH))
    except ValueError:
        raise ValueError(f"effort must be one of {', '.join(Effort)}, got {raw['effort']!r}") from None
    return chat_prompt(
        tokenizer,
        str(raw.get("key", key)),
        messages,
        domain=expect_text(raw.get("domain", "default"), "domain"),
        effort=effort,
        functions=functions,
        **({"verifier": expect_text(raw["verifier"], "verifier"), "answer": raw["answer"]} if ruled else {}),
        **({"rubric": expect_text(raw["rubric"], "rubric")} if "rubric" in raw else {}),
    )
