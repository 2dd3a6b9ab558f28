"""Limits on the sizes inside a request, checked by counting before the fields are validated.

A prompt that cannot fit the context is refused before it is tokenised. The dialects validate the fields.
"""

from collections.abc import Iterable, Iterator, Mapping

from dsv4.server.wire.errors import ApiError, ContextOverflow, invalid
from dsv4.server.wire.json import has_more

MOST_NAME = 256
MOST_STOP = 4096
MOST_TOOLS = 4096
MOST_ARGUMENTS = 100_000
# values in one schema, and in all tools together: objects, lists, strings, numbers
MOST_SCHEMA_PARTS, MOST_TOOL_PARTS = 50_000, 250_000
# each message and part takes at least one token of the context; a small context accepts this many anyway
LEAST_ENTRIES = 4096
# fields of the three dialects that hold the schema of an answer
FORMATS = ("response_format", "text", "output_config", "output_format")


def check_sizes(body: object, context_length: int, vocab_size: int) -> None:
    """Raise ApiError 400, naming the field and its limit, for a decoded body that exceeds a limit."""
    if not isinstance(body, Mapping):
        return
    most = max(LEAST_ENTRIES, context_length)
    for name in ("messages", "input"):
        _count(name, body.get(name), most)
        if (inner := _inner(body.get(name))) > most:
            raise invalid(name, f"at most {most:,} parts and calls are accepted, got {inner:,}")
        for index, text in _arguments(body.get(name)):
            if len(text) > MOST_ARGUMENTS and has_more(text.encode(errors="replace"), MOST_ARGUMENTS):
                problem = f"at most {MOST_ARGUMENTS:,} values are accepted in the arguments of a call"
                raise invalid(f"{name}[{index}]", problem)
    for name in ("tokens", "prompt"):
        _count(name, body.get(name), most)
    _count("tools", body.get("tools"), MOST_TOOLS)
    _count("logit_bias", body.get("logit_bias"), vocab_size)
    for name in ("model", "task"):
        _length(name, body.get(name), MOST_NAME)
    for name in ("stop", "stop_sequences"):
        value = body.get(name)
        for text in value[:MOST_TOOLS] if isinstance(value, list) else [value]:
            _length(name, text, MOST_STOP)
    for name in FORMATS:
        _schema(name, body.get(name), MOST_SCHEMA_PARTS)
    tools = body.get("tools")
    if isinstance(tools, list):
        parts = 0
        for index, tool in enumerate(tools):
            parts += _schema(f"tools[{index}]", tool, MOST_SCHEMA_PARTS)
            if parts > MOST_TOOL_PARTS:
                raise invalid("tools", f"at most {MOST_TOOL_PARTS:,} values are accepted in all schemas together")


def check_fits(texts: Iterable[object], longest_token: int, context_length: int) -> None:
    """Raise ContextOverflow if the texts of a prompt cannot fit the context, even if every token has `longest_token`
    bytes. Counts characters first, which takes no time, and bytes only where that does not decide."""
    strings = [text for text in texts if isinstance(text, str)]
    most = longest_token * context_length
    size = sum(map(len, strings))
    if size <= most < 4 * size:
        size = sum(len(text.encode("utf-8", errors="replace")) for text in strings)
    if size > most:
        raise ContextOverflow(size // longest_token, 1, context_length)


def _count(name: str, value: object, most: int) -> None:
    if isinstance(value, list | Mapping) and len(value) > most:
        raise invalid(name, f"at most {most:,} are accepted, got {len(value):,}")


def _inner(messages: object) -> int:
    """Parts and calls of all messages together."""
    if not isinstance(messages, list):
        return 0
    lists = (
        message.get(name)
        for message in messages
        if isinstance(message, dict)
        for name in ("content", "tool_calls", "output", "summary")
    )
    return sum(len(value) for value in lists if isinstance(value, list))


def _arguments(messages: object) -> Iterator[tuple[int, str]]:
    """The arguments of all calls (JSON inside a JSON string), with the index of their message or item."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        calls = message.get("tool_calls")
        calls = [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
        for holder in (message, *(call.get("function") for call in calls)):
            if isinstance(holder, dict) and isinstance(text := holder.get("arguments"), str):
                yield index, text


def _length(name: str, value: object, most: int) -> None:
    if isinstance(value, str) and len(value) > most:
        raise invalid(name, f"at most {most:,} characters are accepted, got {len(value):,}")


def _schema(name: str, value: object, most: int) -> int:
    """The number of values in `value`. Raises ApiError 400 for more than `most`."""
    found, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        found += 1
        inner = part.values() if isinstance(part, Mapping) else part if isinstance(part, list) else ()
        if found + len(waiting) + len(inner) > most:
            raise ApiError(400, f"{name}: at most {most:,} values are accepted in a schema", param=name)
        waiting += inner
    return found
