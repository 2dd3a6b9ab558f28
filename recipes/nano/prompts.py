"""The generated items as prompts of runs that learn from rollouts, and what answers and judges them.

[prompts]
path = "recipes.nano.prompts:prompt"
options = { weights = { arithmetic = 2, "tools.unseen" = 1 }, efforts = { high = 3, non-think = 1 } }

[environment]
path = "recipes.nano.prompts:environments"
"""

import random
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dsv4.encoding import Tokenizer
from dsv4.posttraining.chat import ChatEnvironment, Tool, chat_prompt
from dsv4.posttraining.types import Effort, Prompt
from dsv4.posttraining.verifiers import VERIFIERS
from recipes.nano.items.item import draw
from recipes.nano.items.mix import makers, prompt_of, table
from recipes.nano.items.tools import recorded, results_of

TURNS = 6  # answers to one prompt at most


def prompt(
    rng: random.Random,
    tokenizer: Tokenizer,
    weights: Mapping[str, float] | None = None,
    efforts: Mapping[str, float] | None = None,
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
    held_out: bool = False,
) -> Prompt:
    """An item's question, with all that judges the answer. weights: of families or makers, as of
    `recipes.nano.items.mix`. efforts: how often each mode is drawn; High alone where nothing is said. arguments: of
    makers, by name. held_out: of the items that training does not see. Raises ValueError naming a wrong option.
    """
    shares, modes = table(weights), efforts or {Effort.HIGH.value: 1.0}
    if unknown := set(modes) - {effort.value for effort in Effort}:
        raise ValueError(f"efforts: {', '.join(sorted(unknown))} is none of {', '.join(Effort)}")
    if unknown := set(arguments or ()) - set(shares):
        raise ValueError(f"arguments.{min(unknown)}: no such maker is drawn; there are {', '.join(shares)}")
    name = rng.choices(list(shares), list(shares.values()))[0]
    item = draw(partial(makers()[name], **(arguments or {}).get(name, {})), rng, held_out=held_out)
    effort = Effort(rng.choices(list(modes), list(modes.values()))[0])
    messages = [{key: value for key, value in message.items() if key != "tools"} for message in prompt_of(item)]
    return chat_prompt(
        tokenizer,
        f"{name}/{zlib.crc32(item.question.encode()):08x}/{effort}",
        messages,
        domain=item.domain,
        effort=effort,
        functions=[tool["function"] for tool in item.tools],
        verifier=item.verifier,
        answer=item.answer,
        results=results_of(item),
    )


def tools_of(asked: Prompt) -> Sequence[Tool]:
    """The tools of a prompt: each returns what the item recorded for the same call, or an error for any other."""
    results = asked.task.get("results", ())

    def run(name: str, arguments: dict[str, Any]) -> str:
        return recorded(results, name, arguments)

    return [Tool(function, partial(run, function["name"])) for function in asked.task.get("functions", ())]


def environments(tokenizer: Tokenizer) -> ChatEnvironment:
    """One for all domains: conversations with tools where the prompt has some."""
    return ChatEnvironment(tokenizer, VERIFIERS, tools_of, turns=TURNS)
