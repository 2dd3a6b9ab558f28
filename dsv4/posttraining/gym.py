"""Tasks of reasoning-gym (pip install reasoning-gym): its generators make prompts, its `score_answer` judges.

A prompt's task names the generator, its settings and the number of the item, not the item: items hold values that are
no JSON, and are made again where an answer is judged.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

from dsv4.encoding import Tokenizer
from dsv4.posttraining.chat import Verifier, chat_prompt
from dsv4.posttraining.types import Effort, Prompt


def gym_prompts(
    tokenizer: Tokenizer,
    name: str,
    count: int,
    *,
    seed: int = 0,
    domain: str = "gym",
    effort: Effort = Effort.HIGH,
    **settings: Any,
) -> list[Prompt]:
    """The first `count` items of a generator as prompts for `ChatEnvironment(tokenizer, GYM)`. settings: of the
    generator. Raises ValueError for an unknown generator or setting, ModuleNotFoundError without the package."""
    written = json.dumps(settings, sort_keys=True)
    items = _items(name, seed, count, written)
    prompts = []
    for index in range(count):
        answer = {"name": name, "seed": seed, "size": count, "index": index, "settings": settings}
        messages = [{"role": "user", "content": items[index]["question"]}]
        key = f"gym/{name}/{seed}/{index}" + (f"/{written}" if settings else "")
        prompts.append(
            chat_prompt(tokenizer, key, messages, domain=domain, effort=effort, verifier="gym", answer=answer)
        )
    return prompts


def gym_reward(text: str, expected: Mapping[str, Any]) -> float:
    """The generator's own score of a final answer, 0 to 1. expected: the task's `answer`."""
    settings = json.dumps(expected["settings"], sort_keys=True)
    items = _items(expected["name"], expected["seed"], expected["size"], settings)
    return float(items.score_answer(text.strip(), items[expected["index"]]))


GYM: Mapping[str, Verifier] = {"gym": gym_reward}


@lru_cache(maxsize=64)
def _items(name: str, seed: int, size: int, settings: str) -> Any:
    reasoning_gym = import_module("reasoning_gym")

    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **json.loads(settings))
    except (TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"reasoning-gym has no generator {name!r} with the settings {settings}: {error}") from error
