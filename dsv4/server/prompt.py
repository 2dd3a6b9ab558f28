"""From an `Ask` to prompt ids, and the positions where later prompts are likely to branch off."""

from collections.abc import Sequence
from typing import Any

from dsv4.encoding import Tokenizer
from dsv4.server.ask import Ask
from dsv4.server.errors import ApiError, invalid
from dsv4.server.replay import Replays

RECENT_POINTS = 3


def encode(ask: Ask, tokenizer: Tokenizer, replays: Replays | None = None) -> list[int]:
    """The prompt's ids; message text never becomes a control token. Raises ApiError 400.

    A conversation with tools keeps all its reasoning, so that its prefix stays the same.
    """
    messages = rendered(ask)
    try:
        ids = tokenizer.encode_messages(
            messages,
            ask.thinking_mode,
            drop_thinking=not ask.functions,
            reasoning_effort=ask.effort,
            mode="safe",
        )
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from error
    if ask.continued and ask.opens_thinking:
        # the renderer closed the reasoning, which is to go on
        ids = ids[:-1]
    if replays is None:
        return ids
    assistants = [message for message in messages if message["role"] == "assistant"]
    header = tokenizer.token_id(tokenizer.dialect.assistant)
    return replays.apply(ask.owner, ids, assistants, header=header, end=tokenizer.eos_id)


def rendered(ask: Ask) -> list[dict[str, Any]]:
    """The messages with tools and answer format in the first system message, which is made if there is none.

    With a tool choice of `none` the model does not see the tools.
    """
    messages = [dict(message) for message in ask.messages]
    _turn_to_user(messages)
    if ask.task is not None:
        messages.append(_with_task(messages, ask.task))
    if ask.continued:
        messages[-1]["wo_eos"] = True
    extra: dict[str, Any] = {}
    if ask.tools:
        extra["tools"] = [{"type": "function", "function": function} for function in ask.functions]
    if ask.schema is not None and ask.show_schema:
        extra["response_format"] = ask.schema
    if extra:
        if messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": ""})
        messages[0] |= extra
    return messages


def _with_task(messages: list[dict[str, Any]], task: str) -> dict[str, Any]:
    """The last message with the task, taken from `messages`: an answer (whose title is asked for), or the last user
    messages as one, since the encoding drops the task of a message it merges into another. Raises ApiError 400."""
    if messages[-1]["role"] == "assistant":
        return {**messages.pop(), "task": task}
    texts: list[str] = []
    while messages and messages[-1]["role"] == "user":
        texts.insert(0, messages.pop()["content"])
    if not texts or (messages and messages[-1]["role"] == "tool"):
        raise invalid("task", "only behind an answer, or a message of the user that does not follow a tool's result")
    return {"role": "user", "content": "\n\n".join(texts), "task": task}


def _turn_to_user(messages: list[dict[str, Any]]) -> None:
    """The encoding lets only user turns be answered: system messages that are become part of one.

    Also those answered long ago, or a conversation that went on would begin with another prompt than before.
    """
    head = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages) - 1)
    answered = True
    for message in reversed(messages[head:]):
        if message["role"] == "system":
            message["role"] = "user" if answered else "system"
        else:
            answered = message["role"] == "assistant"


def cache_points(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Message borders worth keeping: the end of system and tools, and the last few.

    Only the renderer writes role tokens, so each one in the prompt is a border.
    """
    roles = {tokenizer.token_id(token) for token in (tokenizer.dialect.user, tokenizer.dialect.assistant)}
    borders = [index for index, token in enumerate(ids) if token in roles and index > 1]
    return tuple(dict.fromkeys([*borders[:1], *borders[-RECENT_POINTS:]]))
