"""What the model itself wrote in answer to a chat request: whether a wrong call is its mistake or the server's.

An endpoint that tells the ids of a prompt, continues ids, and turns ids into text shows the model's own text, before
the server has made an answer of it. A server owes what the release's parser makes of that text, and nothing for a text
that this parser refuses.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsv4.encoding import DIALECTS, parse_message_from_completion_text
from dsv4.verify.answer import Answer
from dsv4.verify.endpoint import RefusedError
from dsv4.verify.probe import Probe
from dsv4.verify.survey import GREEDY, id_text, prompt_ids


@dataclass(frozen=True, slots=True)
class ModelText:
    """text: with control tokens. error: why the release's parser refuses it; "" = it does not. calls: names and
    arguments of the calls in it, arguments as text."""

    text: str
    error: str
    calls: tuple[tuple[str, str], ...]

    @property
    def names(self) -> set[str]:
        """The tools that it calls."""
        return {name for name, _ in self.calls}

    def argument(self, tool: str, name: str) -> list[Any]:
        """The values that calls of this tool have for an argument."""
        objects = [parsed_object(arguments) for called, arguments in self.calls if called == tool]
        return [values[name] for values in objects if values is not None and name in values]


def model_text(probe: Probe, body: Mapping[str, Any], answer: Answer) -> ModelText | None:
    """The text of which the endpoint made `answer`. None where it does not show it, or where the text completion is as
    long as another answer: then it is not this text."""
    if not probe.able.ids:
        return None
    ids = prompt_ids(probe.endpoint, body)
    if not ids:
        return None
    probe.check_time()
    thinking = body.get("thinking", {}).get("type") == "enabled"
    # an endpoint that sets the temperature of reasoning itself sets its own here too
    sampling = {"seed": GREEDY["seed"]} if thinking else GREEDY
    asked = {"prompt": ids, "max_tokens": body["max_tokens"], **sampling, "return_token_ids": True}
    try:
        again = probe.endpoint.completion(asked)
    except RefusedError:
        return None
    text = id_text(probe.endpoint, again.ids)
    if not text or again.count("completion_tokens") != answer.count("completion_tokens"):
        return None
    return read(text, probe.settings.dialect or probe.able.dialect, thinking=thinking)


def read(text: str, dialect: str, *, thinking: bool) -> ModelText | None:
    """A text as the release's parser understands it; None for a dialect that is not known."""
    if dialect not in DIALECTS:
        return None
    try:
        mode = "thinking" if thinking else "chat"
        message = parse_message_from_completion_text(text, mode, dialect=DIALECTS[dialect])
    except ValueError as error:
        return ModelText(text, str(error), ())
    functions = [call["function"] for call in message["tool_calls"]]
    return ModelText(text, "", tuple((function["name"], function["arguments"]) for function in functions))


def parsed_object(arguments: str) -> dict[str, Any] | None:
    """The arguments of a call; None if they are no JSON object."""
    try:
        values = json.loads(arguments)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
