"""The text a custom tool is called with, read out of the call's arguments while they arrive."""

import json
import re

# the arguments of a custom tool are one text, which the parser of calls writes as {"input": "..."}
PREFIX = '{"input": "'
# an escape may be cut anywhere; pairs of surrogates are one character
INCOMPLETE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z")
# what stands before an unescaped quote
INSIDE = re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL)


class CustomInput:
    """Takes pieces of arguments, gives pieces of the text.

    found: whether the arguments are of that form; without it they are no text of a custom tool. What follows the text
    is ignored.

    >>> reader = CustomInput()
    >>> reader.feed('{"input": "a'), reader.feed("\\\\nb"), reader.feed('"}')
    ('a', '\\nb', '')
    """

    def __init__(self) -> None:
        self.found = False
        self._held = ""
        self._over = False

    def feed(self, text: str) -> str:
        """More of the arguments; the text they add."""
        if self._over:
            return ""
        self._held += text
        if not self.found:
            if not self._held.startswith(PREFIX):
                return ""
            self.found, self._held = True, self._held[len(PREFIX) :]
        inside = INSIDE.match(self._held)
        assert inside is not None
        self._over = self._held[inside.end() :].startswith('"')
        raw = inside.group()
        cut = INCOMPLETE.search(raw)
        if cut is not None and not self._over and _begins_escape(raw, cut.start()):
            raw = raw[: cut.start()]
        self._held = self._held[len(raw) :]
        return json.loads(f'"{raw}"')


def input_of(arguments: str) -> str:
    """The text in whole arguments of any form; they themselves if there is none, since a model may write other
    ones than it was told to."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value["input"] if isinstance(value, dict) and isinstance(value.get("input"), str) else arguments


def _begins_escape(raw: str, at: int) -> bool:
    """Whether the backslash at `at` is not itself escaped."""
    return (at - len(raw[:at].rstrip("\\"))) % 2 == 0
