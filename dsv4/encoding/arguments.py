"""The arguments of a call as valid JSON: the rules that repair what a model emitted.

A parameter marked `string="true"` is text, unchanged. For a parameter marked `string="false"`, or not marked, the first
rule that applies decides:

1. JSON of a type that its schema allows: passed on as written.
2. A JSON string around such a value (`"3"` for an integer): the value.
3. The result of a tolerant parser, if the schema allows its type: Python's True, False and None, single quotes,
   trailing commas, line breaks inside of strings; leading zeros and `+` only where no string is allowed; NaN and
   infinities inside of a list or object, and where null is allowed, are null.
4. Other JSON: text if the schema allows text, else passed on as written (the client's own check names the fault).
5. Anything else: a JSON string of the text.

A parameter that is not marked is text if the schema allows text or is unknown. JSON deeper than `DEEPEST` is text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dsv4.encoding.schema import json_type, types_of

DEEPEST = 100
NULLS = frozenset({"NaN", "nan", "Infinity", "inf"})
WORDS = {"true": "true", "True": "true", "false": "false", "False": "false", "null": "null", "None": "null"}
NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")
WORD = re.compile(r"[+-]?[A-Za-z]+")
RUN = re.compile(r"[^\"'\\]+")
SPACE = re.compile(r"\s+")
ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
SIMPLE_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}
WRAPPERS = frozenset({"arguments", "input"})

Kinds = frozenset[str]


class Tools:
    """The functions of a request: their names and the schemas of their parameters."""

    def __init__(self, functions: Sequence[Mapping[str, Any]]) -> None:
        self._schemas: dict[str, Mapping[str, Any]] = {}
        self._normal: dict[str, list[str]] = {}
        for function in functions:
            schema = function.get("parameters")
            name = str(function.get("name"))
            self._schemas[name] = schema if isinstance(schema, Mapping) else {}
            self._normal.setdefault(_normal(name), []).append(name)

    def name(self, written: str) -> str | None:
        """The function a model means: by its name, or the only one whose letters and digits are the same whatever
        their case (with `functions.` before them or not). None if there is none."""
        if written in self._schemas:
            return written
        for text in (written, written.removeprefix("functions.")):
            found = self._normal.get(_normal(text), [])
            if len(found) == 1 and _normal(text):
                return found[0]
        return None

    def kinds(self, name: str, key: str) -> Kinds | None:
        """The JSON types that parameter `key` may have; None if the schema does not restrict them."""
        schema = self._schemas.get(name, {})
        return types_of(self._properties(name).get(key), schema)

    def wraps(self, name: str, key: str) -> bool:
        """Whether `key` is not a parameter of the function but a name in which models wrap all parameters."""
        return key in WRAPPERS and bool(properties := self._properties(name)) and key not in properties

    def unwrapped(self, name: str, value: str) -> str | None:
        """The arguments inside a wrapper, if `value` (JSON) is an object that fits the function: it has no other
        parameters and all required ones."""
        inner = _object(value)
        if inner is None and value.startswith('"'):
            inner = _object(json.loads(value))
        if inner is None:
            return None
        keys, required = set(json.loads(inner, parse_int=str)), self._schemas[name].get("required")
        wanted = {key for key in required if isinstance(key, str)} if isinstance(required, list) else set()
        return inner if wanted <= keys <= set(self._properties(name)) else None

    def _properties(self, name: str) -> Mapping[str, Any]:
        properties = self._schemas.get(name, {}).get("properties")
        return properties if isinstance(properties, Mapping) else {}


def json_value(text: str, kinds: Kinds | None = None) -> str:
    """The JSON of a parameter that is not marked as text, by the rules above. Never raises for text."""
    stripped = text.strip()
    kind = _kind(stripped)
    if kind is not None and _allowed(kind, kinds):
        return _without_lone_surrogates(stripped)
    if kind == "string" and kinds is not None:
        inner = json_value(json.loads(stripped), kinds)
        if _allowed(_kind(inner) or "", kinds):
            return inner
    if kind is None:
        repaired = _Tolerant(stripped, kinds).value()
        if repaired is not None and _kind(repaired) is not None:
            return repaired
    elif kinds is None or "string" not in kinds:
        return _without_lone_surrogates(stripped)
    return json.dumps(_encodable(text), ensure_ascii=False)


def json_body(text: str) -> str | None:
    """The JSON object that a call has instead of parameters, repaired like values; None if it is not an object."""
    return _object(text)


def _object(text: str) -> str | None:
    value = json_value(text, frozenset({"object"}))
    return value if value.startswith("{") else None


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _allowed(kind: str, kinds: Kinds | None) -> bool:
    return kinds is None or kind in kinds or (kind == "integer" and "number" in kinds)


def _kind(text: str) -> str | None:
    """The JSON type of `text`, None if it is not JSON (NaN is not JSON)."""
    try:
        if _too_deep(text):
            return None
        # Python does not read integers of more than 4,300 digits; their values are not needed
        return json_type(json.loads(text, parse_constant=_no_constant, parse_int=len))
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= DEEPEST:
        return False
    depth = deepest = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text, re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token.group(), 0)
        deepest = max(deepest, depth)
    return deepest > DEEPEST


def _without_lone_surrogates(text: str) -> str:
    if "\\u" not in text:
        return text
    return ESCAPE.sub(lambda found: "\\ufffd" if found["lone"] else found.group(), text)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


class _Tolerant:
    """Reads text that is nearly JSON, or a Python literal, and writes JSON."""

    def __init__(self, text: str, kinds: Kinds | None) -> None:
        self._text, self._at, self._kinds = text, 0, kinds
        self._zeros = kinds is not None and "string" not in kinds

    def value(self) -> str | None:
        """JSON of an allowed type, None if the text is none."""
        try:
            if _too_deep(self._text):
                return None
            value = self._value(inside=self._kinds is not None and "null" in self._kinds)
            self._space()
        except ValueError:
            return None
        whole = self._at == len(self._text) and _allowed(_kind(value) or "", self._kinds)
        return value if whole else None

    def _value(self, *, inside: bool = True) -> str:
        self._space()
        match self._text[self._at : self._at + 1]:
            case "{":
                return "{" + ", ".join(self._items("}", self._member)) + "}"
            case "[":
                return "[" + ", ".join(self._items("]", self._value)) + "]"
            case '"' | "'":
                return self._string()
        if number := NUMBER.match(self._text, self._at):
            self._at = number.end()
            return self._number(number.group())
        word = WORD.match(self._text, self._at)
        if word is None:
            raise ValueError("no value")
        self._at = word.end()
        if inside and word.group().lstrip("+-") in NULLS:
            return "null"
        if word.group() not in WORDS:
            raise ValueError("an unknown word")
        return WORDS[word.group()]

    def _items(self, close: str, read: Any) -> list[str]:
        self._at += 1
        items: list[str] = []
        while True:
            self._space()
            if self._text.startswith(close, self._at):
                self._at += 1
                return items
            items.append(read())
            self._space()
            if self._text.startswith(",", self._at):
                self._at += 1
            elif not self._text.startswith(close, self._at):
                raise ValueError("neither a comma nor the end")

    def _member(self) -> str:
        if self._text[self._at : self._at + 1] not in ("'", '"'):
            raise ValueError("a key is no string")
        key = self._string()
        self._space()
        if not self._text.startswith(":", self._at):
            raise ValueError("no colon")
        self._at += 1
        return f"{key}: {self._value()}"

    def _string(self) -> str:
        quote, self._at = self._text[self._at], self._at + 1
        out: list[str] = []
        while self._at < len(self._text):
            if run := RUN.match(self._text, self._at):
                out.append(run.group())
                self._at = run.end()
                continue
            char, self._at = self._text[self._at], self._at + 1
            if char == quote:
                text = "".join(out)
                # escapes of surrogates come in pairs
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                return json.dumps(text, ensure_ascii=False)
            if char != "\\":
                out.append(char)
                continue
            char, self._at = self._text[self._at : self._at + 1], self._at + 1
            if char == "u" and re.fullmatch("[0-9a-fA-F]{4}", code := self._text[self._at : self._at + 4]):
                char, self._at = chr(int(code, 16)), self._at + 4
            out.append(SIMPLE_ESCAPES.get(char, char))
        raise ValueError("a string has no end")

    def _number(self, text: str) -> str:
        sign, digits = ("-" if text[0] == "-" else ""), text.lstrip("+-")
        plain = re.sub(r"\.(?=\D|$)", "", re.sub(r"^0+(?=\d)", "", digits))
        if (plain != digits or text[0] == "+") and not self._zeros:
            raise ValueError("perhaps no number, but a name made of digits")
        return sign + plain

    def _space(self) -> None:
        if match := SPACE.match(self._text, self._at):
            self._at = match.end()
