"""From a whole completion to a message: strictly as the release does, or without ever failing, for a server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsv4.encoding.deltas import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from dsv4.encoding.dialect import V4, Dialect
from dsv4.encoding.dsml import ATTRIBUTES, PARAMETER_PREFIX, invoke_name, json_text, to_json
from dsv4.encoding.stream import StreamParser


@dataclass(slots=True)
class ParsedToolCall:
    """One call. `arguments` is JSON text, cut off (and not to be executed) if the call is not `complete`."""

    name: str
    arguments: str = ""
    complete: bool = False


@dataclass(slots=True)
class ParsedCompletion:
    """The content of a completion. `ended`, `malformed` and `broken` as in `StreamParser`."""

    reasoning_content: str = ""
    content: str = ""
    tool_calls: list[ParsedToolCall] = field(default_factory=list)
    ended: bool = False
    malformed: bool = False
    broken: bool = False

    def message(self) -> dict[str, Any]:
        """The assistant message in the released form, with the complete calls only."""
        calls = [_openai_call(call.name, call.arguments) for call in self.tool_calls if call.complete]
        return _message(self.content, self.reasoning_content, calls)

    def add(self, delta: Delta) -> None:
        """Apply one event of a `StreamParser`."""
        match delta:
            case ReasoningDelta(text):
                self.reasoning_content += text
            case ContentDelta(text):
                self.content += text
            case ToolCallStart(_, name):
                self.tool_calls.append(ParsedToolCall(name))
            case ToolCallArguments(index, text):
                self.tool_calls[index].arguments += text
            case ToolCallEnd(index):
                self.tool_calls[index].complete = True


def parse_completion(
    text: str,
    thinking_mode: str,
    dialect: Dialect = V4,
    functions: Sequence[Mapping[str, Any]] | None = None,
) -> ParsedCompletion:
    """Parse generated text that may be cut off or malformed; `stream` has the rules and describes `functions`.

    Text that `parse_message_from_completion_text` accepts gives the same message, except that values that are not JSON
    are repaired here. Never raises for text; raises ValueError for an unknown thinking_mode.
    """
    parser = StreamParser(thinking_mode, dialect, functions)
    completion = ParsedCompletion()
    for delta in [*parser.feed(text), *parser.finish()]:
        completion.add(delta)
    completion.ended, completion.malformed, completion.broken = parser.ended, parser.malformed, parser.broken
    return completion


def parse_message_from_completion_text(text: str, thinking_mode: str, *, dialect: Dialect = V4) -> dict[str, Any]:
    """The assistant message {role, content, reasoning_content, tool_calls} that a well-formed completion
    encodes.

    Name, arguments and result are the release's. `text` is the completion with its end token, which only a
    closed tool-call block may lack. Any thinking_mode other than "thinking" means chat. Raises ValueError,
    saying what was expected, for everything the release rejects.
    """
    reader = _Reader(text)
    opening = "\n\n" + dialect.calls_open
    reasoning = ""
    if thinking_mode == "thinking":
        reasoning, stop = reader.until(dialect.think_close, opening)
        if stop != dialect.think_close:
            raise ValueError(f"invalid thinking format: missing {dialect.think_close}")
    content, stop = reader.until(dialect.eos, opening)
    calls: list[dict[str, Any]] = []
    if stop == opening:
        calls = _tool_calls(reader, dialect)
        rest, stop = reader.until(dialect.eos)
        if rest:
            raise ValueError(f"unexpected content after tool calls: {_short(rest)}")
    elif not stop:
        raise ValueError(f"missing end token {dialect.eos}")
    if not reader.done:
        raise ValueError("unexpected content at end")
    for token in (dialect.bos, dialect.eos, dialect.think_open, dialect.think_close, dialect.dsml):
        for name, value in (("content", content), ("reasoning_content", reasoning)):
            if token in value:
                raise ValueError(f"unexpected control token {token!r} in {name}")
    return _message(content, reasoning, calls)


class _Reader:
    """A position in a text that only moves forward."""

    def __init__(self, text: str) -> None:
        self._text, self._position = text, 0

    @property
    def done(self) -> bool:
        return self._position == len(self._text)

    def until(self, *stops: str) -> tuple[str, str]:
        """Text up to the first of `stops`, and which it was: "" if none follows. Moves behind it."""
        found = [(at, stop) for stop in stops if (at := self._text.find(stop, self._position)) >= 0]
        at, stop = min(found, default=(len(self._text), ""))
        before = self._text[self._position : at]
        self._position = at + len(stop)
        return before, stop


def _tool_calls(reader: _Reader, dialect: Dialect) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    while True:
        gap, stop = reader.until(dialect.invoke_open, dialect.calls_close)
        if gap != ">\n" or not stop:
            raise ValueError(f"tool call format error: expected '>\\n' and a tag but got {_short(gap)}")
        if stop == dialect.calls_close:
            return calls
        header, stop = reader.until(dialect.parameter_open, dialect.invoke_close)
        name = invoke_name(header, strict=True) if stop else None
        if name is None:
            raise ValueError(f"tool name format error: {_short(header)}")
        calls.append(_openai_call(name, _arguments(reader, stop, dialect)))


def _arguments(reader: _Reader, stop: str, dialect: Dialect) -> str:
    arguments: dict[str, str] = {}
    while stop == dialect.parameter_open:
        body, closed = reader.until(dialect.parameter_close[1:])
        attributes = ATTRIBUTES.search(body, len(PARAMETER_PREFIX))
        if not closed or attributes is None or not body.startswith(PARAMETER_PREFIX) or body[-1] != "<":
            raise ValueError(f"parameter format error: {_short(body)}")
        key = body[len(PARAMETER_PREFIX) : attributes.start()]
        value = body[attributes.end() : -1]
        if key in arguments:
            raise ValueError(f"duplicate parameter name: {key!r}")
        arguments[key] = f'"{json_text(value)}"' if attributes[1] == "true" else value
        gap, stop = reader.until(dialect.parameter_open, dialect.invoke_close)
        if gap != ">\n" or not stop:
            raise ValueError(f"parameter format error: expected '>\\n' and a tag but got {_short(gap)}")
    return "{" + ", ".join(f"{to_json(key)}: {value}" for key, value in arguments.items()) + "}"


def _message(content: str, reasoning: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": content,
        "reasoning_content": reasoning,
        "tool_calls": calls,
    }


def _openai_call(name: str, arguments: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
