"""One block of DSML calls, parsed while it arrives.

A call is reported when its name and the header of its first parameter are complete. Its arguments are reported as they
arrive: text at once, other values when they are closed and are valid JSON (the rules of `arguments`). Besides the
released form the parser accepts forms with only one possible meaning: attributes in another order or quotes, without
`string`, an object in JSON instead of parameters, a function's name in another case. Everything else breaks the block:
a name the request does not have, a parameter given twice, text between elements, an end of the answer inside.
"""

import re
from collections.abc import Callable
from enum import Enum, auto

from dsv4.encoding.arguments import Tools, json_body, json_value
from dsv4.encoding.controls import ANY, DSML, EOS, ROLE, Controls
from dsv4.encoding.deltas import Delta, ToolCallArguments, ToolCallEnd, ToolCallStart
from dsv4.encoding.dialect import Dialect
from dsv4.encoding.dsml import json_text, to_json

# a name in double quotes may hold anything, as in the release
INVOKE = re.compile(r'\s*name="(.*)">\s*', re.DOTALL)
INVOKE_LOOSE = re.compile(r"""\s*name=(["'])([^"'<>\n]*)\1\s*>\s*(\{.*\})?\s*""", re.DOTALL)
PARAMETER = re.compile('\\s*name="([^\udc00-\udcff]*?)" string="(true|false)">')
PARAMETER_LOOSE = re.compile(r"""(?:\s*(?:name|string)=(?:"[^"<>\n]*"|'[^'<>\n]*'|\w+))+\s*>""")
ATTRIBUTE = re.compile(r"""(name|string)=(?:"([^"]*)"|'([^']*)'|(\w+))""")


LONGEST_HEADER = 4096


class Status(Enum):
    """Where a block stands."""

    OPEN = auto()
    CLOSED = auto()
    BROKEN = auto()


class _Expected(Enum):
    CALLS = auto()  # between invokes
    INVOKE = auto()  # in the header of an invoke
    PARAMETERS = auto()  # between parameters
    PARAMETER = auto()  # in the header of a parameter
    VALUE = auto()


class CallBlock:
    """Parses marked text behind `<｜DSML｜tool_calls` (or `<｜DSML｜invoke`: then `bare`).

    status: OPEN until the closing tag (CLOSED) or the first violation (BROKEN). rest: what follows a closed block;
    raw: of a broken block the text since the last complete call, with `opening` if there was none. calls: the number of
    calls that were begun. opened: of those whose tag was opened, with a name or not yet.
    """

    def __init__(self, dialect: Dialect, controls: Controls, tools: Tools | None, opening: str, *, bare: bool) -> None:
        self.status = Status.OPEN
        self.calls = 0
        self.opened = int(bare)
        self._controls, self._tools = controls, tools
        self._buffer, self._seen = "", 0
        self._raw = [opening]
        self._out: list[Delta] = []
        self._state = _Expected.INVOKE if bare else _Expected.CALLS
        self._invoke, self._parameter = dialect.invoke_tag, dialect.parameter_tag
        self._between_calls = {
            f"<{DSML}{self._invoke}": self._open_invoke,
            f"</{DSML}{dialect.calls_tag}>": self._close,
        }
        self._between_parameters = {
            f"<{DSML}{self._parameter}": self._open_parameter,
            f"</{DSML}{self._invoke}": self._end_call,
        }
        self._name = self._key = ""
        self._keys: set[str] = set()
        self._members = 0
        self._quoted: bool | None = None
        self._streams = False
        self._value: list[str] = []
        self._wrapped: tuple[str, str] | None = None

    @property
    def raw(self) -> str:
        """Marked text."""
        return "".join(self._raw) + self._buffer

    @property
    def rest(self) -> str:
        """Marked text."""
        return self._buffer

    @property
    def whole(self) -> bool:
        """Whether every call that was begun is complete."""
        return self._state is _Expected.CALLS

    def feed(self, text: str) -> list[Delta]:
        """Take more marked text."""
        self._buffer += text
        steps: dict[_Expected, Callable[[], bool]] = {
            _Expected.CALLS: lambda: self._between(self._between_calls),
            _Expected.INVOKE: self._read_invoke,
            _Expected.PARAMETERS: lambda: self._between(self._between_parameters),
            _Expected.PARAMETER: self._read_parameter,
            _Expected.VALUE: self._read_value,
        }
        while self.status is Status.OPEN and self._buffer and steps[self._state]():
            pass
        out, self._out = self._out, []
        return out

    def _take(self, length: int) -> str:
        text, self._buffer, self._seen = self._buffer[:length], self._buffer[length:], 0
        self._raw.append(text)
        return text

    def _break(self) -> bool:
        self.status = Status.BROKEN
        return False

    def _between(self, tags: dict[str, Callable[[], None]]) -> bool:
        """Expect the `>` of the tag just read, white space, and one of `tags`."""
        if self._buffer[0] != ">":
            return self._break()
        rest = self._buffer[1:].lstrip()
        for tag, act in tags.items():
            if rest.startswith(tag):
                self._take(len(self._buffer) - len(rest))
                self._take(len(tag))
                act()
                return True
        if any(tag.startswith(rest) for tag in tags):
            return False
        return self._break()

    def _open_invoke(self) -> None:
        # what came before was whole; a broken block shows only what is not
        self._raw = [f"\n<{DSML}{self._invoke}"] if self.calls else self._raw
        self.opened += 1
        self._state = _Expected.INVOKE

    def _open_parameter(self) -> None:
        self._state = _Expected.PARAMETER

    def _close(self) -> None:
        # a block without calls would vanish without a trace
        empty = self._tools is not None and not self.calls
        self.status = Status.BROKEN if empty else Status.CLOSED

    def _read_invoke(self) -> bool:
        found = ANY.search(self._buffer, self._seen)
        if found is None:
            self._seen = len(self._buffer)
            return False
        at = self._seen = found.start()
        before, rest = self._buffer[:at], self._buffer[at + 1 :]
        closing = before.endswith("</")
        tag = self._invoke if closing else self._parameter
        if found.group() != DSML or not before.endswith(("<", "</")):
            return self._break()
        if not rest.startswith(tag):
            return False if tag.startswith(rest) else self._break()
        name, body = self._header(before[: -1 - closing])
        if name is None or (body is not None and not closing):
            return self._break()
        self._take(at + 1 + len(tag))
        self._out.append(ToolCallStart(self.calls, name))
        self.calls += 1
        self._name, self._keys, self._members, self._wrapped = name, set(), 0, None
        if closing:
            self._end_call(body)
        else:
            self._state = _Expected.PARAMETER
        return True

    def _header(self, text: str) -> tuple[str | None, str | None]:
        """The function's name, None if the request has no such function, and the JSON object instead of parameters."""
        loose = INVOKE_LOOSE.fullmatch(text)
        strict = INVOKE.fullmatch(text)
        if loose is None and strict is None:
            return None, None
        written = loose[2] if loose is not None else strict[1] if strict is not None else ""
        name = self._tools.name(written) if self._tools is not None else written
        if loose is None or loose[3] is None:
            return name, None
        body = json_body(loose[3])
        return (None, None) if body is None else (name, body)

    def _read_parameter(self) -> bool:
        loose = PARAMETER_LOOSE.match(self._buffer)
        strict = None if loose is not None else PARAMETER.match(self._buffer)
        match = loose or strict
        if match is None and ANY.search(self._buffer) is None and len(self._buffer) <= LONGEST_HEADER:
            return False
        if match is None or match.end() > LONGEST_HEADER:
            return self._break()
        if strict is not None:
            pairs = [("name", strict[1]), ("string", strict[2])]
        else:
            pairs = [
                (name, first or second or third) for name, first, second, third in ATTRIBUTE.findall(match.group())
            ]
        fields = dict(pairs)
        marked = fields.get("string", "").lower()
        if len(fields) < len(pairs) or "name" not in fields or marked not in ("true", "false", ""):
            return self._break()
        self._key = fields["name"]
        if self._key in self._keys:
            return self._break()
        self._take(match.end())
        self._keys.add(self._key)
        kinds = self._tools.kinds(self._name, self._key) if self._tools is not None else None
        self._quoted = marked == "true" if marked else kinds is None or "string" in kinds
        wraps = self._tools is not None and len(self._keys) == 1 and self._tools.wraps(self._name, self._key)
        self._streams = self._quoted and not wraps
        self._unwrap_failed()
        if self._streams:
            self._arguments(self._prefix(self._key) + '"')
        self._value = []
        self._state = _Expected.VALUE
        return True

    def _read_value(self) -> bool:
        found = ANY.search(self._buffer)
        if found is None:
            held = 2 if self._buffer.endswith("</") else int(self._buffer.endswith("<"))
            self._more(self._take(len(self._buffer) - held))
            return False
        at, mark = found.start(), found.group()
        before, rest = self._buffer[:at], self._buffer[at + 1 :]
        if mark == DSML and before.endswith("</"):
            if rest.startswith(self._parameter):
                self._more(self._take(at - 2))
                self._take(3 + len(self._parameter))
                self._end_value()
                return True
            if self._parameter.startswith(rest):
                self._more(self._take(at - 2))
                return False
        if mark == ROLE:
            self._more(self._take(at))
            return self._break()
        if mark == EOS and not rest:
            # an end token is part of a value unless it is the last thing of the text: strict parsing reads it so
            self._more(self._take(at))
            return False
        self._more(self._take(at + 1))
        return True

    def _more(self, text: str) -> None:
        text = self._controls.plain(text)
        if self._streams:
            self._arguments(json_text(text))
        else:
            self._value.append(text)

    def _end_value(self) -> None:
        self._state = _Expected.PARAMETERS
        if self._streams:
            self._arguments('"')
            return
        tools, text = self._tools, "".join(self._value)
        kinds = tools.kinds(self._name, self._key) if tools is not None else None
        value = f'"{json_text(text)}"' if self._quoted else json_value(text, kinds)
        if tools is not None and len(self._keys) == 1 and tools.wraps(self._name, self._key):
            self._wrapped = (self._key, value)  # until it is known that nothing follows
        else:
            self._arguments(self._prefix(self._key) + value)

    def _unwrap_failed(self) -> None:
        """Another parameter follows, so the one before did not wrap all of them."""
        if self._wrapped is not None:
            (key, value), self._wrapped = self._wrapped, None
            self._arguments(self._prefix(key) + value)

    def _end_call(self, body: str | None = None) -> None:
        if self._wrapped is not None:
            value = self._wrapped[1]
            body = self._tools.unwrapped(self._name, value) if self._tools is not None else None
            if body is None:
                self._unwrap_failed()
        self._arguments(body if body is not None else "}" if self._members else "{}")
        self._out.append(ToolCallEnd(self.calls - 1))
        self._raw = []
        self._state = _Expected.CALLS

    def _prefix(self, key: str) -> str:
        self._members += 1
        return ("{" if self._members == 1 else ", ") + f"{to_json(key)}: "

    def _arguments(self, text: str) -> None:
        if not text:
            return
        index = self.calls - 1
        last = self._out[-1] if self._out else None
        # one feed gives one piece of arguments per call, however many parameters it holds
        if isinstance(last, ToolCallArguments) and last.index == index:
            text = last.text + text
            self._out.pop()
        self._out.append(ToolCallArguments(index, text))
