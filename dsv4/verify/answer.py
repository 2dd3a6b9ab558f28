"""An answer of an endpoint in one form, whether it came whole or as a stream, and what is wrong with its form."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeGuard

LARGEST = 1e300  # of a number that is taken for one: JSON's NaN, infinities and integers beyond floats are none


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool as the endpoint sent it; arguments: the text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Scored:
    """One sampled token. data: its bytes. top: alternatives, the likeliest first. id: None if the endpoint tells
    none."""

    data: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()
    id: int | None = None

    @property
    def text(self) -> str:
        """For people: a token may end within a character."""
        return self.data.decode("utf-8", errors="replace")

    @property
    def gap(self) -> float | None:
        """Nats between the two likeliest tokens; None if fewer than two are known."""
        return self.top[0][1] - self.top[1][1] if len(self.top) > 1 else None


@dataclass(frozen=True, slots=True)
class Answer:
    """tokens: those of the content, if the request asked for log-probabilities. ids: all sampled tokens, if the
    endpoint tells them. problems: what is wrong with the form, as sentences."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    finish: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[Scored, ...] = ()
    ids: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def said(self) -> tuple[str, str, tuple[tuple[str, str], ...], str | None]:
        """What two answers to one greedy request have in common: all but ids and counts."""
        return self.reasoning, self.content, tuple((call.name, call.arguments) for call in self.calls), self.finish

    def count(self, name: str) -> int | None:
        """A number of the usage, with names of details after a dot; None if it is missing or no number."""
        value: Any = self.usage
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value if _is_count(value) else None


def answer_of(value: Mapping[str, Any]) -> Answer:
    """A `chat.completion`. Never raises: what is missing is a problem of the answer."""
    choice = _first(value)
    message = _mapping(choice.get("message"))
    problems = [] if choice else ["the answer has no choice"]
    if choice and message.get("role") != "assistant":
        problems.append(f"the role of the message is {message.get('role')!r}, not 'assistant'")
    calls = [_mapping(call) for call in _list(message.get("tool_calls"))]
    problems += [f"call {i} has type {call.get('type')!r}" for i, call in enumerate(calls) if _kind_is_wrong(call)]
    return Answer(
        _text(message.get("content")),
        _reasoning(message),
        tuple(_call(call) for call in calls),
        _finish(choice),
        _mapping(value.get("usage")),
        _scored(choice),
        problems=tuple(problems),
    )


def completion_of(value: Mapping[str, Any]) -> Answer:
    """A `text_completion`. Never raises."""
    choice = _first(value)
    scores = _mapping(choice.get("logprobs"))
    texts, values, tops = (_list(scores.get(name)) for name in ("tokens", "token_logprobs", "top_logprobs"))
    ids = tuple(i for i in _list(choice.get("token_ids")) if _is_count(i))
    rows = zip_longest(texts, values[: len(texts)], tops[: len(texts)])
    tokens = tuple(Scored(_bytes(str(text)), _number(value), _ordered(_mapping(top))) for text, value, top in rows)
    if len(ids) == len(tokens):
        tokens = tuple(Scored(t.data, t.logprob, t.top, token) for t, token in zip(tokens, ids, strict=True))
    usage = _mapping(value.get("usage"))
    return Answer(_text(choice.get("text")), "", (), _finish(choice), usage, tokens, ids)


def merge(events: Iterable[str]) -> Answer:
    """The answer of a stream of `chat.completion.chunk`s. Never raises for what they hold."""
    merged = StreamedAnswer()
    for data in events:
        merged.take(data)
    return merged.answer()


class StreamedAnswer:
    """A stream of `chat.completion.chunk`s so far. Never raises for what they hold."""

    def __init__(self) -> None:
        self.content, self.reasoning = "", ""
        self.finish: str | None = None
        self.calls: dict[int, dict[str, str]] = {}
        self.usage: Mapping[str, Any] = {}
        self.tokens: list[Scored] = []
        self.problems: list[str] = []
        self.ids: set[Any] = set()
        self.done = False

    def take(self, data: str) -> None:
        """The data of the next event."""
        if self.done:
            self._wrong("an event follows [DONE]")
        if data == "[DONE]":
            self.done = True
            return
        try:
            chunk = _mapping(json.loads(data))
        except (ValueError, RecursionError):
            self._wrong(f"an event is no JSON: {data[:80]!r}")
            return
        if "error" in chunk:
            self._wrong(f"the stream has an error: {json.dumps(chunk['error'])[:200]}")
        self.ids.add(json.dumps(chunk.get("id")))
        self.usage = _mapping(chunk.get("usage")) or self.usage
        if chunk.get("choices"):
            self._take_choice(_first(chunk))

    def _take_choice(self, choice: Mapping[str, Any]) -> None:
        delta = _mapping(choice.get("delta"))
        text, thought, calls = _text(delta.get("content")), _reasoning(delta), _list(delta.get("tool_calls"))
        if self.finish is not None and (text or thought or calls):
            self._wrong("text follows the finish reason")
        if thought and (self.content or self.calls):
            self._wrong("reasoning follows the answer")
        self.content += text
        self.reasoning += thought
        self.tokens += _scored(choice)
        for call in calls:
            self._take_call(_mapping(call))
        if choice.get("finish_reason") is not None:
            if self.finish is not None:
                self._wrong("two chunks have a finish reason")
            self.finish = _finish(choice)

    def _take_call(self, delta: Mapping[str, Any]) -> None:
        index = delta.get("index")
        if not _is_count(index):
            self._wrong("a part of a call has no index")
            index = len(self.calls)
        function = _mapping(delta.get("function"))
        if index not in self.calls:
            self.calls[index] = {"id": "", "name": "", "arguments": ""}
            if _kind_is_wrong(delta):
                self._wrong(f"call {index} has type {delta.get('type')!r}")
        call = self.calls[index]
        for name, value in (("id", delta.get("id")), ("name", function.get("name"))):
            if _text(value) and call[name] and value != call[name]:
                self._wrong(f"call {index} changes its {name}")
            call[name] = call[name] or _text(value)
        call["arguments"] += _text(function.get("arguments"))

    def _wrong(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def answer(self) -> Answer:
        """The answer, when the stream has ended."""
        if not self.done:
            self._wrong("the stream has no [DONE]")
        if self.finish is None:
            self._wrong("no chunk has a finish reason")
        if len(self.ids) > 1:
            self._wrong(f"chunks have {len(self.ids)} different ids")
        calls = tuple(Call(**call) for _, call in sorted(self.calls.items()))
        return Answer(
            self.content, self.reasoning, calls, self.finish, self.usage, tuple(self.tokens), (), tuple(self.problems)
        )


def _kind_is_wrong(call: Mapping[str, Any]) -> bool:
    return call.get("type") != "function"


def _call(call: Mapping[str, Any]) -> Call:
    function = _mapping(call.get("function"))
    return Call(_text(call.get("id")), _text(function.get("name")), _text(function.get("arguments")))


def _reasoning(fields: Mapping[str, Any]) -> str:
    """The reasoning; vLLM has it as `reasoning`, others as `reasoning_content`."""
    return _text(fields.get("reasoning_content")) or _text(fields.get("reasoning"))


def _scored(choice: Mapping[str, Any]) -> tuple[Scored, ...]:
    entries = _list(_mapping(choice.get("logprobs")).get("content"))
    return tuple(
        Scored(*_token(entry), tuple(_token(_mapping(top)) for top in _list(entry.get("top_logprobs"))))
        for entry in map(_mapping, entries)
    )


def _token(entry: Mapping[str, Any]) -> tuple[bytes, float]:
    data = entry.get("bytes")
    known = isinstance(data, list) and all(_is_count(one) and 0 <= one < 256 for one in data)
    return bytes(data) if known else _bytes(_text(entry.get("token"))), _number(entry.get("logprob"))


def _first(value: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = value.get("choices")
    return _mapping(choices[0]) if isinstance(choices, list) and choices else {}


def _ordered(top: Mapping[str, Any]) -> tuple[tuple[bytes, float], ...]:
    return tuple(sorted(((_bytes(text), _number(value)) for text, value in top.items()), key=lambda pair: -pair[1]))


def _finish(choice: Mapping[str, Any]) -> str | None:
    """The finish reason; what is no text is shown as it came."""
    value = choice.get("finish_reason")
    return value if value is None or isinstance(value, str) else repr(value)


def _number(value: Any) -> float:
    """A log-probability; 0, which no token with an alternative has, for what is no number."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST
    return float(value) if known else 0.0


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _bytes(text: str) -> bytes:
    """UTF-8; half of a surrogate pair, which JSON can name, becomes a question mark."""
    return text.encode(errors="replace")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
