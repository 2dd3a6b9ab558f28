"""The input text of a custom tool, extracted from the arguments of its call while they arrive."""

import json
import re

# the arguments of a custom tool are one text; the parser of calls writes them as {"input": "..."}
PREFIX = '{"input": "'
# an incomplete escape at the end; a pair of surrogates is one character
INCOMPLETE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z")
# the first quote without an escape, and what stands before it
QUOTE = re.compile(r'((?:[^"\\]|\\.)*)"', re.DOTALL)


class CustomInput:
    """Takes pieces of the arguments and returns pieces of the text.

    found: whether the arguments have the form {"input": "..."}. Anything after the text is ignored.

    >>> reader = CustomInput()
    >>> reader.feed('{"input": "a'), reader.feed("\\\\nb"), reader.feed('"}')
    ('a', '\\nb', '')
    """

    def __init__(self) -> None:
        self.found = False
        self._held = ""
        self._over = False

    def feed(self, text: str) -> str:
        """Take more of the arguments; returns the text that they add."""
        if self._over:
            return ""
        self._held += text
        if not self.found:
            if not self._held.startswith(PREFIX):
                return ""
            self.found, self._held = True, self._held[len(PREFIX) :]
        quote = QUOTE.match(self._held)
        self._over = quote is not None
        raw = quote[1] if quote is not None else self._held
        cut = INCOMPLETE.search(raw)
        if cut is not None and not self._over and _begins_escape(raw, cut.start()):
            raw = raw[: cut.start()]
        self._held = self._held[len(raw) :]
        return json.loads(f'"{raw}"')


def input_of(arguments: str) -> str:
    """The text in complete arguments; the arguments themselves if the model wrote them in another form."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value["input"] if isinstance(value, dict) and isinstance(value.get("input"), str) else arguments


def _begins_escape(raw: str, at: int) -> bool:
    """Whether the backslash at `at` is not itself escaped."""
    return (at - len(raw[:at].rstrip("\\"))) % 2 == 0
