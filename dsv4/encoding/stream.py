"""Generated text to reasoning, content and tool calls while it arrives.

The parser never raises on text: it is what stands between a model, which may write anything and be cut
anywhere, and a client. Its rules, which `parse.parse_completion` shares because it is this parser fed once:

- In thinking mode the text starts as reasoning, until `</think>` (or a tool-call block, or the end token).
- The end token ends the message; what follows is ignored.
- `<｜DSML｜tool_calls` or a bare `<｜DSML｜invoke`, and up to two newlines before it, starts the calls.
- Any other begin token, `<think>`, `</think>` or `｜DSML｜` in reasoning or content is taken out.
- Inside the block white space between elements is free; otherwise the grammar of `dsml` holds. At the first
  violation, and after the block, the rest of the text is dropped and `malformed` is set.
- A call is reported as soon as its name is known. If the text ends inside it, its arguments stay unfinished
  JSON and no `ToolCallEnd` follows: completing them would invent a call that the model did not make.
- Text that may become a marker is held back. At the end of the text it is dropped if it is recognisable
  (three characters, or `｜D`, or an empty line and `<`), else it was ordinary text such as `<` or `｜`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial

from dsv4.encoding.dialect import V4, Dialect
from dsv4.encoding.dsml import ATTRIBUTES, PARAMETER_PREFIX, invoke_name, json_text, to_json

RECOGNISABLE = 3


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More reasoning text."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """Call number `index` (from 0) begins; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the arguments of call `index`, a piece of a JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """Call `index` is complete. Without this event it was cut off and must not be executed."""

    index: int


Delta = ReasoningDelta | ContentDelta | ToolCallStart | ToolCallArguments | ToolCallEnd


class _State(Enum):
    REASONING = auto()
    CONTENT = auto()
    CALLS = auto()  # between invokes
    INVOKE = auto()  # in the header of an invoke
    PARAMETERS = auto()  # between parameters
    PARAMETER = auto()  # in the header of a parameter
    VALUE = auto()
    AFTER = auto()  # behind the closed block
    OVER = auto()


class StreamParser:
    """Incremental parser of one completion.

    The concatenated deltas do not depend on how the text is split. `ended` tells whether the message was
    complete (end token or closed tool-call block), `malformed` whether text was dropped for breaking the
    grammar.

    >>> parser = StreamParser("thinking")
    >>> parser.feed("why</th") + parser.feed("ink>because") + parser.finish()
    [ReasoningDelta(text='why'), ContentDelta(text='because')]

    Raises ValueError for an unknown thinking_mode, never for text.
    """

    def __init__(self, thinking_mode: str, dialect: Dialect = V4) -> None:
        if thinking_mode not in ("chat", "thinking"):
            raise ValueError(f"thinking_mode: expected one of chat, thinking, got {thinking_mode!r}")
        self.dialect = dialect
        self.ended = False
        self.malformed = False
        self._state = _State.REASONING if thinking_mode == "thinking" else _State.CONTENT
        self._buffer = ""
        self._out: list[Delta] = []
        self._calls = 0
        self._keys: set[str] = set()
        self._quoted = False
        openings = [
            newlines + tag for newlines in ("\n\n", "\n", "") for tag in (dialect.calls_open, dialect.invoke_open)
        ]
        stray = [dialect.bos, dialect.think_open, dialect.think_close, dialect.dsml]
        self._text_markers = _Markers([*openings, dialect.eos, *stray])
        # a closing tag without its `<` breaks the grammar, but must be seen
        self._value_markers = _Markers([dialect.parameter_close, dialect.parameter_close[1:]])
        self._between_calls: dict[str, Callable[[], None]] = {
            dialect.invoke_open: partial(self._go, _State.INVOKE),
            dialect.calls_close: self._close_block,
        }
        self._between_parameters: dict[str, Callable[[], None]] = {
            dialect.parameter_open: partial(self._go, _State.PARAMETER),
            dialect.invoke_close: self._close_invoke,
        }
        self._invoke_stops = _Markers([dialect.parameter_open, dialect.invoke_close])

    def feed(self, text: str) -> list[Delta]:
        """Take more text, give what it settles. After the end everything is ignored."""
        self._buffer += text
        while self._step():
            pass
        out, self._out = self._out, []
        return out

    def finish(self) -> list[Delta]:
        """The text is over: give what was held back and is ordinary text. Call once, last."""
        held, self._buffer = self._buffer, ""
        if self._state in (_State.REASONING, _State.CONTENT):
            recognisable = (
                len(held.lstrip("\n")) >= RECOGNISABLE or self.dialect.dsml[:2] in held or held.startswith("\n\n<")
            )
            if not recognisable:
                self._text(held)
        elif self._state is _State.VALUE and held.endswith(self.dialect.eos):
            self.ended = True
        self._state = _State.OVER
        out, self._out = self._out, []
        return out

    def _step(self) -> bool:
        """Do one piece of work on the buffer; False if it needs more text."""
        if not self._buffer:
            return False
        match self._state:
            case _State.REASONING | _State.CONTENT:
                return self._step_text()
            case _State.CALLS:
                return self._step_between(self._between_calls)
            case _State.INVOKE:
                return self._step_invoke()
            case _State.PARAMETERS:
                return self._step_between(self._between_parameters)
            case _State.PARAMETER:
                return self._step_parameter()
            case _State.VALUE:
                return self._step_value()
            case _State.AFTER:
                return self._step_after()
            case _State.OVER:
                self._buffer = ""
                return False

    def _step_text(self) -> bool:
        before, marker = self._text_markers.split(self._buffer)
        self._text(before)
        self._buffer = self._buffer[len(before) + len(marker) :]
        bare = marker.lstrip("\n")
        if not marker:
            return False
        if marker == self.dialect.eos:
            self._end()
        elif bare == self.dialect.calls_open:
            self._state = _State.CALLS
        elif bare == self.dialect.invoke_open:
            self._state = _State.INVOKE
        elif marker == self.dialect.think_close:
            self._state = _State.CONTENT
        return True

    def _step_between(self, tags: Mapping[str, Callable[[], None]]) -> bool:
        """Expect the `>` of the tag just read, white space, and one of `tags`."""
        if self._buffer[0] != ">":
            return self._drop_rest()
        rest = self._buffer[1:].lstrip()
        for tag, act in tags.items():
            if rest.startswith(tag):
                self._buffer = rest[len(tag) :]
                act()
                return True
        if rest.startswith(self.dialect.eos):
            self.malformed = True
            self._end()
            return True
        if any(tag.startswith(rest) for tag in (*tags, self.dialect.eos)):
            return False
        return self._drop_rest()

    def _step_invoke(self) -> bool:
        match = self._invoke_stops.pattern.search(self._buffer)
        if match is None:
            return False
        name = invoke_name(self._buffer[: match.start()], strict=False)
        if name is None:
            return self._drop_rest()
        self._buffer = self._buffer[match.end() :]
        self._out.append(ToolCallStart(self._calls, name))
        self._calls += 1
        self._arguments("{")
        self._keys = set()
        if match.group() == self.dialect.parameter_open:
            self._go(_State.PARAMETER)
        else:
            self._close_invoke()
        return True

    def _step_parameter(self) -> bool:
        known = min(len(self._buffer), len(PARAMETER_PREFIX))
        if self._buffer[:known] != PARAMETER_PREFIX[:known]:
            return self._drop_rest()
        match = ATTRIBUTES.search(self._buffer, len(PARAMETER_PREFIX))
        closed = self._buffer.find(self.dialect.parameter_close[1:])
        if closed >= 0 and (match is None or closed < match.start()):
            return self._drop_rest()
        if match is None:
            return False
        key = self._buffer[len(PARAMETER_PREFIX) : match.start()]
        if key in self._keys:
            return self._drop_rest()
        self._buffer = self._buffer[match.end() :]
        self._quoted = match[1] == "true"
        separator = ", " if self._keys else ""
        self._keys.add(key)
        self._arguments(f"{separator}{to_json(key)}: " + ('"' if self._quoted else ""))
        self._go(_State.VALUE)
        return True

    def _step_value(self) -> bool:
        value, marker = self._value_markers.split(self._buffer)
        eos = self.dialect.eos
        if not marker and (held := overlap(value, eos) or (eos if value.endswith(eos) else "")):
            # an end token is part of a value unless it is the last thing of the text: strict parsing reads
            # it so
            value = value[: -len(held)]
        self._arguments(json_text(value) if self._quoted else value)
        self._buffer = self._buffer[len(value) + len(marker) :]
        if not marker:
            return False
        if marker != self.dialect.parameter_close:
            return self._drop_rest()
        if self._quoted:
            self._arguments('"')
        self._go(_State.PARAMETERS)
        return True

    def _step_after(self) -> bool:
        self._buffer = self._buffer.lstrip()
        if self._buffer.startswith(self.dialect.eos):
            self._end()
        elif not self.dialect.eos.startswith(self._buffer):
            self._drop_rest()
        return False

    def _close_invoke(self) -> None:
        self._arguments("}")
        self._out.append(ToolCallEnd(self._calls - 1))
        self._go(_State.CALLS)

    def _close_block(self) -> None:
        self.ended = True
        self._go(_State.AFTER)

    def _go(self, state: _State) -> None:
        self._state = state

    def _end(self) -> None:
        self.ended = True
        self._go(_State.OVER)

    def _drop_rest(self) -> bool:
        self.malformed = True
        self._go(_State.OVER)
        return True

    def _text(self, text: str) -> None:
        if text:
            reasoning = self._state is _State.REASONING
            self._out.append(ReasoningDelta(text) if reasoning else ContentDelta(text))

    def _arguments(self, text: str) -> None:
        if not text:
            return
        index = self._calls - 1
        last = self._out[-1] if self._out else None
        # one feed gives one piece of arguments per call, however many parameters it holds
        if isinstance(last, ToolCallArguments) and last.index == index:
            text = last.text + text
            self._out.pop()
        self._out.append(ToolCallArguments(index, text))


class _Markers:
    """A set of texts to look for, none of which is a prefix of another."""

    def __init__(self, markers: Sequence[str]) -> None:
        self.markers = tuple(markers)
        self.pattern = re.compile("|".join(map(re.escape, self.markers)))
        self._starts = re.compile("|".join({re.escape(marker[0]) for marker in self.markers}) or "(?!)")

    def split(self, text: str) -> tuple[str, str]:
        """The start of `text` that is certainly not part of a marker, and the marker behind it.

        The marker is "" if none is there, or if an earlier one may still be completed by more text.
        """
        if self._starts.search(text) is None:
            return text, ""  # nearly every token: no marker begins here
        match = self.pattern.search(text)
        held = max((len(overlap(text, marker)) for marker in self.markers), default=0)
        safe = len(text) - held
        if match is not None and match.start() <= safe:
            return text[: match.start()], match.group()
        return text[:safe], ""


def overlap(text: str, marker: str) -> str:
    """The longest end of `text` that is a start of `marker`, but not all of it."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return marker[:length]
    return ""
