"""The arguments of `LocalModel.chat` as the server reads a request: the same fields, prompt and grammar."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.generation import ConstraintFactory
from dsv4.server.dialects.chat.read import read_chat
from dsv4.server.dialects.chat.request import parse_chat
from dsv4.server.dialects.constraints import Desk, constraint
from dsv4.server.dialects.prompt import begun, cache_points, encode
from dsv4.server.dialects.request import GenerationRequest
from dsv4.server.wire.errors import ApiError

# fields that the released encoding reads from a message, and that a request has beside its messages
OUTSIDE = ("tools", "response_format", "task")


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A conversation ready to run: its prompt's ids, the positions where later prompts may differ, and the constraint.

    begun: the markup of the answer at the end of the prompt.
    """

    request: GenerationRequest
    prompt: list[int]
    points: tuple[int, ...]
    constraint: ConstraintFactory | None
    begun: str


def prepare(desk: Desk, messages: Sequence[Mapping[str, Any]], *, guarded: bool = True, **fields: Any) -> PreparedChat:
    """Check, render and encode. desk: the model's tokenizer and grammars. guarded: as of `constraint`. fields: as in
    the body of a chat completion; None = not given.

    Raises ValueError naming the field and its allowed values.
    """
    body = {name: value for name, value in fields.items() if value is not None}
    body["messages"] = _messages(messages)
    if body.get("reasoning_effort") == "none":
        # an effort of none takes precedence over the default of `thinking`
        body.pop("thinking", None)
    if "tools" in body and not isinstance(body["tools"], str | bytes):
        body["tools"] = list(body["tools"])
    try:
        request = read_chat(parse_chat(body), desk.tokenizer.dialect, "", "")
        prompt = encode(request, desk.tokenizer)
        points = cache_points(prompt, desk.tokenizer)
        grammar = constraint(desk, request, guarded=guarded)
        return PreparedChat(request, prompt, points, grammar, begun(request, desk.tokenizer.dialect))
    except ApiError as error:
        text = str(error)
        raise ValueError(text.replace("reasoning_effort:", "effort:", 1)) from None


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A copy of the messages of a conversation. Raises ValueError naming message and field."""
    checked = _messages(messages) if messages else []
    try:
        parse_chat({"messages": [*checked, {"role": "user", "content": ""}]})
    except ApiError as error:
        raise ValueError(str(error)) from None
    return checked


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"messages: expected a list of message dicts, got {type(messages).__name__}")
    if not messages:
        raise ValueError("messages: at least one is needed")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            hint = " (an answer's .message is one)" if hasattr(message, "message") else ""
            raise ValueError(f"messages[{index}]: expected a dict, got {type(message).__name__}{hint}")
        for name in OUTSIDE:
            if message.get(name):
                raise ValueError(f"messages[{index}].{name}: give it beside the messages, as {name}=...")
    # an answer's calls are a tuple, which people put into messages of their own
    return [
        {name: list(value) if isinstance(value, tuple) else value for name, value in message.items()}
        for message in messages
    ]
