"""The generated tasks as prompts of a GRPO run: `prompts.path = "recipes.nano.specialist_prompts:prompt"`."""

import random
import zlib

from dsv4.encoding import Tokenizer
from dsv4.posttraining.chat import chat_prompt
from dsv4.posttraining.types import Effort, Prompt
from recipes.nano.items.item import draw
from recipes.nano.items.mix import makers, prompt_of


def prompt(
    rng: random.Random, tokenizer: Tokenizer, maker: str, efforts: list[str] | None = None, held_out: bool = False
) -> Prompt:
    """One item of a maker of `recipes.nano.items.mix`. efforts: the modes to draw from; default: High. The key is the
    question's, so the same question is not asked twice in a step."""
    item = draw(makers()[maker], rng, held_out=held_out)
    effort = Effort(rng.choice(efforts or [Effort.HIGH.value]))
    messages = [{key: value for key, value in message.items() if key != "tools"} for message in prompt_of(item)]
    key = f"{maker}/{zlib.crc32(item.question.encode()):08x}/{effort}"
    return chat_prompt(
        tokenizer,
        key,
        messages,
        domain=item.domain,
        effort=effort,
        functions=[tool.get("function", tool) for tool in item.tools],
        verifier=item.verifier,
        answer=item.answer,
    )
