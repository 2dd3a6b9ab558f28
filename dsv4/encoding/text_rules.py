"""The rules of a schema for raw text in a call: literals, patterns, formats and lengths as terminals.

A value in DSML is either raw text or JSON, so a schema is split: `Schemas.text` for the first, `Schemas.other_types`
for the second, which the grammar engine handles itself.
"""

import json
from collections.abc import Mapping
from typing import Any

import llguidance

from dsv4.encoding.schema import TYPES, GrammarError, json_type, resolve

MOST_FORMS = 64
# keywords that would change what text is allowed, and are not enforced here
NOT_FOR_TEXT = ("not", "if", "then", "else", "contentEncoding", "contentMediaType", "contentSchema", "$dynamicRef")

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_HEX = "[0-9a-fA-F]{1,4}"
_IPV6 = "|".join(
    [
        f"(?:{_HEX}:){{7}}{_HEX}",
        f"(?:{_HEX}:){{6}}{_IPV4}",
        *(f"(?:{_HEX}(?::{_HEX}){{0,{n}}})?::(?:{_HEX}(?::{_HEX}){{0,{5 - n}}})?" for n in range(6)),
        f"::(?:ffff:)?{_IPV4}",
    ]
)
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,7}}"
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_DATE = "|".join(
    [
        "[0-9]{4}-(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
        "[0-9]{4}-(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)",
        "[0-9]{4}-02-(?:0[1-9]|1[0-9]|2[0-8])",
        "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29",
    ]
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_DAYS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
_HOURS = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_CHARACTER = "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
FORMATS = {
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"(?:{_DATE})[Tt]{_TIME}",
    "duration": f"P(?:[0-9]+W|{_DAYS}(?:{_HOURS})?|{_HOURS})",
    "hostname": _HOST,
    "email": rf"{_ATOM}(?:\.{_ATOM})*@{_HOST}",
    "uri": rf"[A-Za-z][A-Za-z0-9+.-]*:{_CHARACTER}*(?:/{_CHARACTER}*)*(?:\?(?:{_CHARACTER}|[/?])*)?"
    rf"(?:#(?:{_CHARACTER}|[/?])*)?",
}

Root = Mapping[str, Any]


class Schemas:
    """The schemas inside one document. root: the document that `$ref` refers to.

    All methods raise GrammarError naming the keyword that cannot be enforced.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._types: dict[int, frozenset[str]] = {}
        self._forms: dict[int, list[list[str]]] = {}
        self._open: set[int] = set()

    def text(self, schema: Any) -> str | None:
        """An expression of Lark terminals for the text a schema allows; "" for any text, None for none."""
        forms = self._forms_of(schema)
        if any(not form for form in forms):
            return ""
        return " | ".join("(" + " & ".join(form) + ")" for form in forms) or None

    def other_types(self, schema: Any) -> list[str]:
        """The JSON types besides text that a schema allows."""
        return [kind for kind in TYPES if kind != "string" and kind in self._types_of(schema)]

    def _types_of(self, schema: Any) -> frozenset[str]:
        if isinstance(schema, bool):
            return frozenset(TYPES) if schema else frozenset()
        if not isinstance(schema, Mapping):
            raise GrammarError(f"expected a schema, got {schema!r:.80}")
        known = self._types.get(id(schema))
        if known is None:
            if id(schema) in self._open:
                raise GrammarError("$ref: refers to itself without end")
            self._open.add(id(schema))
            known = self._types[id(schema)] = self._read_types(schema)
            self._open.discard(id(schema))
        return known

    def _read_types(self, schema: Mapping[str, Any]) -> frozenset[str]:
        found = frozenset(TYPES)
        if "type" in schema:
            named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            if not named or any(kind not in TYPES for kind in named):
                raise GrammarError(f"type: expected one of {', '.join(TYPES)}, got {schema['type']!r:.80}")
            found = frozenset(named) | (frozenset({"integer"}) if "number" in named else frozenset())
        if "const" in schema:
            found &= {json_type(schema["const"])}
        if isinstance(schema.get("enum"), list):
            found &= frozenset(map(json_type, schema["enum"]))
        if "$ref" in schema:
            found &= self._types_of(resolve(schema["$ref"], self._root))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                found &= frozenset().union(*map(self._types_of, _parts(schema, keyword)))
        for part in _parts(schema, "allOf"):
            found &= self._types_of(part)
        return found

    def _forms_of(self, schema: Any) -> list[list[str]]:
        """Alternatives, each a list of expressions that must all hold."""
        if schema is True or schema == {}:
            return [[]]
        if not isinstance(schema, Mapping) or "string" not in self._types_of(schema):
            return []
        known = self._forms.get(id(schema))
        if known is None:
            known = self._forms[id(schema)] = self._read_forms(schema)
        return known

    def _read_forms(self, schema: Mapping[str, Any]) -> list[list[str]]:
        for keyword in NOT_FOR_TEXT:
            if keyword in schema:
                raise GrammarError(f"{keyword}: not supported for a parameter that may be text")
        forms = [_own(schema)]
        if "$ref" in schema:
            forms = _both(forms, self._forms_of(resolve(schema["$ref"], self._root)))
        for keyword in ("anyOf", "oneOf"):
            if keyword not in schema:
                continue
            texts = [branch for branch in map(self._forms_of, _parts(schema, keyword)) if branch]
            if keyword == "oneOf" and len(texts) > 1 and not _distinct(_parts(schema, keyword)):
                raise GrammarError("oneOf: only one of its schemas may be text, or all of them a const or enum")
            forms = _both(forms, [form for branch in texts for form in branch])
        for part in _parts(schema, "allOf"):
            forms = _both(forms, self._forms_of(part))
        return forms


def _own(schema: Mapping[str, Any]) -> list[str]:
    """The schema's own rules, without the schemas inside it."""
    rules: list[str] = []
    if "const" in schema:
        rules.append(_literals([schema["const"]]))
    if isinstance(schema.get("enum"), list):
        rules.append(_literals(schema["enum"]))
    if "pattern" in schema:
        rules.append(searched(schema["pattern"]))
    if "format" in schema:
        if not isinstance(schema["format"], str) or schema["format"] not in FORMATS:
            raise GrammarError(f"format: {schema['format']!r:.80} is not supported; supported are {', '.join(FORMATS)}")
        rules.append(_regex(FORMATS[schema["format"]]))
    least, most = _length(schema, "minLength"), _length(schema, "maxLength")
    if least or most is not None:
        if most is not None and (least or 0) > most:
            raise GrammarError("minLength: larger than maxLength")
        rules.append(f"/(?s:.{{{least or 0},{'' if most is None else most}}})/")
    return rules


def _length(schema: Mapping[str, Any], keyword: str) -> int | None:
    value = schema.get(keyword)
    if isinstance(value, bool) or (value is not None and not (isinstance(value, int) and value >= 0)):
        raise GrammarError(f"{keyword}: expected a number of characters, got {value!r:.80}")
    return value


def _literals(values: list[Any]) -> str:
    texts = dict.fromkeys(value for value in values if isinstance(value, str))
    return "(" + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts) + ")"


def searched(pattern: Any) -> str:
    """A `pattern` as a terminal: it holds if it is found anywhere, unless it is anchored. Raises GrammarError."""
    if not isinstance(pattern, str):
        raise GrammarError(f"pattern: expected a regular expression, got {pattern!r:.80}")
    branches: list[str] = []
    for branch in _alternatives(pattern):
        begins = branch.startswith("^")
        ends = branch.endswith("$") and (len(branch) - len(branch[:-1].rstrip("\\"))) % 2 == 1
        inner = branch[begins : len(branch) - ends]
        if any(char in "^$" for char in _outside_classes(inner)):
            raise GrammarError("pattern: ^ and $ are supported at the ends only")
        branches.append(("" if begins else "(?s:.*)") + f"(?:{inner})" + ("" if ends else "(?s:.*)"))
    return _regex("|".join(branches))


def _regex(pattern: str) -> str:
    # \d and \w as in JavaScript
    return f"/{llguidance.regex_to_lark(f'(?:{pattern})', use_ascii='dw')}/"


def _alternatives(pattern: str) -> list[str]:
    """The parts between `|` that stand in no group."""
    parts, depth = [""], 0
    for char, plain in _characters(pattern):
        depth += (char == "(") - (char == ")") if plain else 0
        if char == "|" and plain and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _outside_classes(pattern: str) -> list[str]:
    return [char for char, plain in _characters(pattern) if plain]


def _characters(pattern: str) -> list[tuple[str, bool]]:
    """Each character (an escape as one), and whether it may be an operator."""
    found: list[tuple[str, bool]] = []
    at, inside = 0, False
    while at < len(pattern):
        char = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        opens, closes = char == "[" and not inside, char == "]" and inside
        found.append((char, not (inside or opens or char.startswith("\\"))))
        inside = (inside or opens) and not closes
        at += len(char)
    return found


def _both(left: list[list[str]], right: list[list[str]]) -> list[list[str]]:
    forms = [[*one, *other] for one in left for other in right]
    if len(forms) > MOST_FORMS:
        raise GrammarError(f"anyOf, allOf: more than {MOST_FORMS} combinations of text")
    return forms


def _distinct(parts: list[Any]) -> bool:
    """Whether schemas name different texts, and only these."""
    named: list[str] = []
    for part in parts:
        values = part.get("enum", [part["const"]] if "const" in part else None) if isinstance(part, Mapping) else None
        if not isinstance(values, list):
            return False
        named += {value for value in values if isinstance(value, str)}
    return len(named) == len(set(named))


def _parts(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    parts = schema.get(keyword, [])
    if not isinstance(parts, list) or (keyword in schema and not parts):
        raise GrammarError(f"{keyword}: expected a list of schemas")
    return parts
