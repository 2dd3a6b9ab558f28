"""From generated text to reasoning, content and tool calls, while the text arrives.

The parser never raises on text, because a model may emit any text and may be cut anywhere. `parse.parse_completion`
feeds this parser once and so has the same rules:

- Only control tokens have an effect (`ordinary` and `control`); the same characters in ordinary tokens are text. When
  only text is known (`feed`), the text of a control token counts as the token.
- In thinking mode the text starts as reasoning, until `</think>` (or a tool-call block, or the end token).
- The end token or a role token ends the message; what follows is ignored.
- `<｜DSML｜tool_calls` or a bare `<｜DSML｜invoke`, and up to two newlines before it, starts the calls (see `calls`).
- Every other control token in reasoning or content is removed.
- A block that violates the grammar is not a call: its text, from the first incomplete call on, is content, and `broken`
  is set. Text behind a complete block is dropped.
- If the text ends inside a call, its arguments stay unfinished JSON and no `ToolCallEnd` follows: completing them would
  invent a call that the model did not make.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

from dsv4.encoding.arguments import Tools
from dsv4.encoding.calls import CallBlock, Status
from dsv4.encoding.controls import ANY, DSML, ENDS, THINK_CLOSE, controls_of
from dsv4.encoding.deltas import ContentDelta, Delta, ReasoningDelta
from dsv4.encoding.dialect import V4, Dialect


class _Region(Enum):
    REASONING = auto()
    CONTENT = auto()
    CALLS = auto()
    BROKEN = auto()  # the text of a block that is none
    AFTER = auto()  # behind the closed block
    OVER = auto()


_DELTAS = {_Region.REASONING: ReasoningDelta, _Region.CONTENT: ContentDelta}
# no text, and what may become the start of a block
_HELD = ("", "\n", "<")


class StreamParser:
    """Incremental parser of one completion.

    functions: OpenAI function objects of the request; their names and schemas then apply (see `arguments`), None = any
    name.

    The concatenated deltas do not depend on how the text is split. `ended` tells whether the message was complete (end
    token or closed tool-call block), `broken` whether a block of calls is incomplete, `malformed` whether that is so or
    text behind a block was dropped.

    >>> parser = StreamParser("thinking")
    >>> parser.feed("why</th") + parser.feed("ink>because") + parser.finish()
    [ReasoningDelta(text='why'), ContentDelta(text='because')]

    Raises ValueError for an unknown thinking_mode, never for text.
    """

    def __init__(
        self,
        thinking_mode: str,
        dialect: Dialect = V4,
        functions: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        if thinking_mode not in ("chat", "thinking"):
            raise ValueError(f"thinking_mode: expected one of chat, thinking, got {thinking_mode!r}")
        self.dialect = dialect
        self.ended = self.malformed = self.broken = False
        self._controls = controls_of(dialect)
        self._tools = None if functions is None else Tools(functions)
        self._state = _Region.REASONING if thinking_mode == "thinking" else _Region.CONTENT
        self._held = ""  # the start of a control token's text, where there is only text
        self._buffer = ""
        self._out: list[Delta] = []
        self._block: CallBlock | None = None
        self._lead, self._shown = "", False  # white space of a broken block, until something else follows
        self._steps: dict[_Region, Callable[[], bool]] = {
            _Region.REASONING: self._step_text,
            _Region.CONTENT: self._step_text,
            _Region.CALLS: self._step_calls,
            _Region.BROKEN: self._step_broken,
            _Region.AFTER: self._step_after,
            _Region.OVER: self._step_over,
        }

    @property
    def over(self) -> bool:
        """Whether all that follows is ignored."""
        return self._state is _Region.OVER

    @property
    def second_call(self) -> bool:
        """Whether a second call was opened; its name may not be known yet, or be wrong."""
        return self._block is not None and self._block.opened > 1

    def feed(self, text: str) -> list[Delta]:
        """Take more text of unknown tokens; return the deltas that are final. Text after the end is ignored."""
        marked, self._held = self._controls.read(self._held + text)
        return self._push(marked)

    def ordinary(self, text: str) -> list[Delta]:
        """Take the text of ordinary tokens."""
        kind = self.kind(text)
        return self._push(text) if kind is None else [kind(text)]

    def kind(self, text: str) -> type[ReasoningDelta | ContentDelta] | None:
        """What `ordinary` would make of `text` if that is one delta and changes nothing else, as for nearly every
        token; None if it is not so."""
        if self._buffer or text[-1:] in _HELD or ANY.search(text) is not None:
            return None
        return _DELTAS.get(self._state)

    def control(self, token: str) -> list[Delta]:
        """Take the control token written `token`."""
        return self._push(self._controls.mark(token))

    def finish(self, *, cut: bool = True) -> list[Delta]:
        """The text has ended: return what was held back. Call this once, last. cut: a limit or the caller ended the
        text, so that an open block is incomplete and not broken."""
        if self._state in (_Region.REASONING, _Region.CONTENT, _Region.BROKEN) or not cut:
            self._push_only(self._held)
        held, self._buffer = self._buffer, ""
        if self._state in (_Region.REASONING, _Region.CONTENT):
            if DSML not in held:
                self._text(held)
            elif not cut:
                self._text(self._controls.plain(held))
                self.malformed = True
        elif self._block is not None and self._state is _Region.CALLS and (not cut or self._ends_inside(self._block)):
            self._break(self._block)
            self._run()
        self._state = _Region.OVER
        out, self._out = self._out, []
        return out

    def _ends_inside(self, block: CallBlock) -> bool:
        """Whether the text ends with an end token inside the block; one with more behind it is part of a value."""
        return not self._held and block.rest.endswith(ENDS)

    def _push(self, marked: str) -> list[Delta]:
        self._push_only(marked)
        out, self._out = self._out, []
        return out

    def _push_only(self, marked: str) -> None:
        self._buffer += marked
        self._run()

    def _run(self) -> None:
        while self._buffer and self._steps[self._state]():
            pass

    def _step_text(self) -> bool:
        """Process one part of the buffer; False if it needs more text."""
        found = ANY.search(self._buffer)
        if found is None:
            self._text(self._cut(_opening(self._buffer)))
            return False
        at, mark = found.start(), found.group()
        if mark == DSML and self._buffer[:at].endswith("<"):
            start = _opening(self._buffer[:at])
            rest = self._buffer[at + 1 :]
            for tag in (self.dialect.calls_tag, self.dialect.invoke_tag):
                if rest.startswith(tag):
                    self._text(self._cut(start))
                    self._open(self._cut(at - start + 1 + len(tag)), bare=tag == self.dialect.invoke_tag)
                    return True
                if tag.startswith(rest):
                    self._text(self._cut(start))
                    return False
        self._text(self._cut(at))
        self._cut(1)
        if mark in ENDS:
            self._end()
        elif mark == THINK_CLOSE:
            self._state = _Region.CONTENT
        return True

    def _open(self, opening: str, *, bare: bool) -> None:
        self._block = CallBlock(self.dialect, self._controls, self._tools, opening, bare=bare)
        self._state = _Region.CALLS

    def _step_calls(self) -> bool:
        assert self._block is not None
        self._out += self._block.feed(self._cut(len(self._buffer)))
        match self._block.status:
            case Status.OPEN:
                return False
            case Status.CLOSED:
                self.ended = True
                self._buffer, self._state = self._block.rest, _Region.AFTER
            case Status.BROKEN:
                self._break(self._block)
        return True

    def _break(self, block: CallBlock) -> None:
        self.broken = self.malformed = True
        # behind a whole call stands the end of its tag
        self._buffer = block.raw.removeprefix(">") if block.calls and block.whole else block.raw
        self._state = _Region.BROKEN

    def _step_broken(self) -> bool:
        end = next((found for found in ANY.finditer(self._buffer) if found.group() in ENDS), None)
        self._lead += self._controls.plain(self._cut(len(self._buffer) if end is None else end.start()))
        if self._shown or self._lead.strip():  # an empty line alone is not worth showing
            text, self._lead, self._shown = self._lead, "", True
            self._text(text)
        if end is not None:
            self._end()
        return end is not None

    def _step_after(self) -> bool:
        self._buffer = self._buffer.lstrip()
        if self._buffer:
            self.malformed = self._buffer[0] not in ENDS
            self._end()
        return False

    def _step_over(self) -> bool:
        self._buffer = ""
        return False

    def _cut(self, length: int) -> str:
        text, self._buffer = self._buffer[:length], self._buffer[length:]
        return text

    def _end(self) -> None:
        self.ended = True
        self._state, self._buffer = _Region.OVER, ""

    def _text(self, text: str) -> None:
        if text:
            self._out.append(ReasoningDelta(text) if self._state is _Region.REASONING else ContentDelta(text))


def _opening(text: str) -> int:
    """The position at the end of `text` where the opening of a block may begin: up to two line breaks and a `<`."""
    head = text.removesuffix("<")
    return len(head) - min(2, len(head) - len(head.rstrip("\n")))
