"""What the model itself wrote in answer to a chat request: whether a wrong call is its mistake or the server's.

An endpoint that tells the ids of a prompt, continues ids, and turns ids into text shows the model's own text, before
the server has made an answer of it. A server owes what the release's parser makes of that text, and nothing for a text
that this parser refuses.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsv4.encoding import DIALECTS, Dialect, parse_message_from_completion_text
from dsv4.verify.answer import Answer
from dsv4.verify.endpoint import RefusedError
from dsv4.verify.probe import Probe
from dsv4.verify.survey import GREEDY, id_text, prompt_ids


class UnknownTextError(Exception):
    """Nobody can tell what the model wrote. The message says why, as a part of a sentence."""


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


def model_text(probe: Probe, body: Mapping[str, Any], answer: Answer) -> ModelText:
    """The text of which the endpoint made `answer`. Raises UnknownTextError where the endpoint lacks what that takes,
    or where its text completion is of another length than the answer: then it is not this text."""
    if not probe.able.ids:
        raise UnknownTextError("the endpoint has no text completions that take and tell token ids")
    ids = prompt_ids(probe.endpoint, body)
    if not ids:
        raise UnknownTextError("the endpoint does not tell the ids of a prompt with tools")
    probe.check_time()
    thinking = body.get("thinking", {}).get("type") == "enabled"
    # an endpoint that sets the temperature of reasoning itself sets its own here too
    sampling = {"seed": GREEDY["seed"]} if thinking else GREEDY
    most, single = body["max_tokens"], body.get("parallel_tool_calls") is False
    if single:  # such an answer may end where the model would begin a second call
        most = answer.count("completion_tokens") or most
    asked = {"prompt": ids, "max_tokens": most, **sampling, "return_token_ids": True}
    try:
        again = probe.endpoint.completion(asked)
    except RefusedError as error:
        raise UnknownTextError(f"the endpoint refuses to continue the ids of the prompt ({error})") from None
    text = id_text(probe.endpoint, again.ids)
    if not text:
        raise UnknownTextError("the endpoint does not turn ids into text (/detokenize)")
    if again.count("completion_tokens") != answer.count("completion_tokens"):
        raise UnknownTextError("a text completion of its prompt has another number of tokens, so it is another text")
    return read(text, probe.settings.dialect or probe.able.dialect, thinking=thinking, single=single)


def read(text: str, dialect: str, *, thinking: bool, single: bool = False) -> ModelText:
    """A text as the release's parser understands it. single: without what was begun behind its only whole call. Raises
    UnknownTextError for a dialect that is not known."""
    if dialect not in DIALECTS:
        raise UnknownTextError("the dialect of the endpoint is not known (--dialect)")
    try:
        mode = "thinking" if thinking else "chat"
        written = _first_call(text, DIALECTS[dialect]) if single else text
        message = parse_message_from_completion_text(written, mode, dialect=DIALECTS[dialect])
    except ValueError as error:
        return ModelText(text, str(error), ())
    functions = [call["function"] for call in message["tool_calls"]]
    return ModelText(text, "", tuple((function["name"], function["arguments"]) for function in functions))


def _first_call(text: str, dialect: Dialect) -> str:
    """The text up to the end of its only whole call, with the end of the block; the text itself where it has no such
    call, or the model has closed the block."""
    call_end, block_end = (f"</{dialect.dsml}{tag}>" for tag in (dialect.invoke_tag, dialect.calls_tag))
    head, found, rest = text.partition(call_end)
    if not found or call_end in rest or block_end in rest:
        return text
    return f"{head}{call_end}\n{block_end}{dialect.eos}"


def parsed_object(arguments: str) -> dict[str, Any] | None:
    """The arguments of a call; None if they are no JSON object."""
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
