"""JSON schemas: the types of values, references, and limits on the size of a schema that a grammar enforces.

The time to compile a grammar grows faster than some parts of its schema.
"""

from collections.abc import Mapping
from typing import Any

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
MOST_PARTS = 20_000
MOST_DEPTH = 50
# schemas in one object of properties, one list of alternatives
MOST_MEMBERS = 1_000
GROUPS = ("properties", "patternProperties", "anyOf", "oneOf", "allOf", "prefixItems", "required")
# references and alternatives that are followed for the types of a schema
REFERENCES = 16
# numbers with more digits than any that is meant
MOST_DIGITS = 300


class GrammarError(ValueError):
    """A schema or pattern that cannot be enforced; the message names what is not supported."""


def json_type(value: object) -> str:
    """The JSON type of a decoded value, "integer" rather than "number" for 1.0 (JSON Schema 2020-12, Core, 4.2.1)."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list() | tuple():
            return "array"
        case _:
            return "object"


def resolve(reference: Any, root: Mapping[str, Any]) -> Any:
    """The schema that a `$ref` refers to inside a document. Raises GrammarError for references elsewhere and for
    missing targets."""
    place: Any = root
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise GrammarError(f"$ref: only references into the schema itself are supported, got {reference!r:.80}")
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and name.isdecimal() and int(name) < len(place):
            place = place[int(name)]
        elif isinstance(place, Mapping) and name in place:
            place = place[name]
        else:
            raise GrammarError(f"$ref: there is no {reference!r:.80} in the schema")
    return place


def types_of(schema: Any, root: Mapping[str, Any], left: int = REFERENCES) -> frozenset[str] | None:
    """The types that a schema names, at least those of the values that it accepts; None if it names none, or refers to
    itself. root: the document that `$ref` refers to."""
    if not isinstance(schema, Mapping) or left == 0:
        return None
    match schema:
        case {"type": str() | list() as named}:
            kinds = frozenset(map(str, [named] if isinstance(named, str) else named))
            return kinds if kinds <= {*TYPES} else None
        case {"const": value}:
            return frozenset({json_type(value)})
        case {"enum": [_, *_] as values}:
            return frozenset(map(json_type, values))
        case {"$ref": reference}:
            try:
                return types_of(resolve(reference, root), root, left - 1)
            except GrammarError:
                return None
        case {"anyOf": [_, *_] as parts} | {"oneOf": [_, *_] as parts}:
            found = [types_of(part, root, left - 1) for part in parts[:REFERENCES]]
            known = [kinds for kinds in found if kinds is not None]
            return frozenset().union(*known) if len(known) == len(parts) else None
        case {"allOf": [part]}:
            return types_of(part, root, left - 1)
        case _:
            return None


def values_of(schema: Any, root: Mapping[str, Any], left: int = REFERENCES) -> list[Any] | None:
    """The values that a schema lists, at least those that it accepts; None if it lists none. root: as in
    `types_of`."""
    if not isinstance(schema, Mapping) or left == 0:
        return None
    match schema:
        case {"const": value}:
            return [value]
        case {"enum": [*values]}:
            return values
        case {"type": "null"}:
            return [None]
        case {"$ref": reference}:
            try:
                return values_of(resolve(reference, root), root, left - 1)
            except GrammarError:
                return None
        case {"anyOf": [_, *_] as parts} | {"oneOf": [_, *_] as parts}:
            found = [values_of(part, root, left - 1) for part in parts[:REFERENCES]]
            known = [value for values in found if values is not None for value in values]
            return known if len(parts) <= REFERENCES and None not in found else None
        case {"allOf": [part]}:
            return values_of(part, root, left - 1)
        case _:
            return None


def check_size(schema: Any) -> None:
    """Raises GrammarError for a schema that is too large in some part, naming the part and the limit."""
    waiting: list[tuple[Any, int]] = [(schema, 0)]
    parts = 0
    while waiting:
        part, depth = waiting.pop()
        parts += 1
        if parts > MOST_PARTS:
            raise GrammarError(f"more than {MOST_PARTS:,} values are too many to enforce")
        if depth > 2 * MOST_DEPTH:
            raise GrammarError(f"nested deeper than {MOST_DEPTH} objects")
        if isinstance(part, Mapping):
            _check_groups(part)
            waiting += [(value, depth + 1) for value in part.values()]
        elif isinstance(part, list):
            waiting += [(value, depth + 1) for value in part]
        elif isinstance(part, int) and abs(part) >= 10**MOST_DIGITS:
            raise GrammarError(f"a number of more than {MOST_DIGITS} digits")


def _check_groups(schema: Mapping[str, Any]) -> None:
    for name in GROUPS:
        group = schema.get(name)
        if isinstance(group, Mapping | list) and len(group) > MOST_MEMBERS:
            raise GrammarError(f"{name}: {len(group):,} are too many to enforce; at most {MOST_MEMBERS:,}")


def patterns(schemas: Any) -> list[str]:
    """The values of all `pattern` keywords, each once."""
    found: dict[str, None] = {}
    waiting = [schemas]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            if isinstance(part.get("pattern"), str):
                found[part["pattern"]] = None
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return list(found)
