"""Turns a `GenerationRequest` into its prompt, and finds the positions where later prompts probably differ."""

from collections.abc import Sequence
from typing import Any

from dsv4.encoding import Dialect, Segment, Tokenizer, render_segments, served
from dsv4.encoding.messages import with_system_fields
from dsv4.generation import points_to_keep
from dsv4.server.backend.replay import Replays
from dsv4.server.dialects.request import GenerationRequest
from dsv4.server.wire.errors import ApiError, invalid


def encode(request: GenerationRequest, tokenizer: Tokenizer, replays: Replays | None = None) -> list[int]:
    """The ids of the prompt; text of messages never becomes a control token. replays: replaces the tokens of known
    answers. Raises ApiError 400."""
    messages = rendered(request, tokenizer.dialect)
    try:
        ids = tokenizer.encode_segments(_segments(request, messages, tokenizer.dialect))
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from error
    if replays is None:
        return ids
    assistants = [message for message in messages if message["role"] == "assistant"]
    header = tokenizer.token_id(tokenizer.dialect.assistant)
    return replays.apply(request.owner, ids, assistants, header=header, end=tokenizer.eos_id)


def prompt_text(request: GenerationRequest, dialect: Dialect) -> str:
    """The prompt as text. Raises ApiError 400."""
    return "".join(segment.text for segment in _segments(request, rendered(request, dialect), dialect))


def begun(request: GenerationRequest, dialect: Dialect) -> str:
    """The markup of the answer at the end of the prompt: the opening of a block of calls, or nothing."""
    return f"\n\n{dialect.calls_open}>\n" if request.opens_call else ""


def rendered(request: GenerationRequest, dialect: Dialect) -> list[dict[str, Any]]:
    """The messages, with tools and answer format in the first system message, which is added if there is none.

    Dialects without system turns have one system text at the head of the prompt, which joins all system messages.
    """
    messages = [dict(message) for message in request.messages]
    if not dialect.system:
        for message in messages:
            sort_calls(message)
    extra: dict[str, Any] = {}
    if request.functions:
        extra["tools"] = [{"type": "function", "function": function} for function in request.functions]
    if request.any_object:
        extra["json_object"] = True
    elif request.schema is not None:
        extra["response_format"] = request.schema
    messages = with_system_fields(messages, extra, dialect)
    if request.task is not None:
        messages.append(_with_task(messages, request.task))
    if request.continued:
        messages[-1]["wo_eos"] = True
    return messages


def sort_calls(message: dict[str, Any]) -> None:
    """Sort the calls of an assistant message by their ids, as the official service does. Its ids, like this server's,
    begin with the number of the call."""
    if message.get("tool_calls"):
        message["tool_calls"] = sorted(message["tool_calls"], key=lambda call: call["id"] or "")


def _segments(request: GenerationRequest, messages: Sequence[dict[str, Any]], dialect: Dialect) -> list[Segment]:
    """The segments of the prompt. A conversation with tools keeps all its reasoning, so that its prefix stays the
    same."""
    dialect = served(dialect)
    try:
        segments = render_segments(
            messages,
            request.thinking_mode,
            drop_thinking=not request.shown,
            reasoning_effort=request.effort,
            dialect=dialect,
        )
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from error
    if request.continued and request.opens_thinking:
        # the renderer has closed the reasoning, but the answer continues it
        last = segments.pop()
        segments.append(Segment(last.text.removesuffix(dialect.think_close), last.trusted))
    if opening := begun(request, dialect):
        segments.append(Segment(opening, trusted=True))
    return segments


def _with_task(messages: list[dict[str, Any]], task: str) -> dict[str, Any]:
    """The last message with the task; it is removed from `messages`. It is an answer, or the last user messages joined
    into one, because the encoding drops the task of a message that it merges into another. Raises ApiError 400."""
    if messages and messages[-1]["role"] == "assistant":
        return {**messages.pop(), "task": task}
    texts: list[str] = []
    while messages and messages[-1]["role"] == "user":
        texts.append(messages.pop()["content"])
    if not texts or (messages and messages[-1]["role"] == "tool"):
        raise invalid("task", "only behind an answer, or a message of the user that does not follow a tool's result")
    return {"role": "user", "content": "\n\n".join(reversed(texts)), "task": task}


def cache_points(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The borders of messages at which a prefix should be kept: the end of system and tools, and the last few.

    Only the renderer writes role tokens, so each role token in the prompt is a border.
    """
    dialect = tokenizer.dialect
    tokens = (dialect.user, dialect.assistant, *((dialect.system,) if dialect.system else ()))
    roles = set(map(tokenizer.token_id, tokens))
    borders = [index for index, token in enumerate(ids) if token in roles and index > 1]
    return points_to_keep(borders)
