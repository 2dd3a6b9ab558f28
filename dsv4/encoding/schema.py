"""JSON schemas: the types of values, references, and limits on the size of a schema that a grammar enforces.

The time to compile a grammar grows faster than some parts of its schema.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
MOST_PARTS = 20_000
MOST_DEPTH = 50
# schemas in one object of properties, one list of alternatives
MOST_MEMBERS = 1_000
GROUPS = ("properties", "patternProperties", "anyOf", "oneOf", "allOf", "prefixItems", "required")
# references and alternatives that are followed one behind the other for the types of a schema, the alternatives of one
# place, and all of them together: references may multiply
REFERENCES, MOST_LOOKED = 16, 100
# numbers with more digits than any that is meant
MOST_DIGITS = 300

T = TypeVar("T")


class GrammarError(ValueError):
    """A schema or pattern that cannot be enforced; the message names what is not supported."""


class TooLargeError(GrammarError):
    """Schemas that cannot be enforced together, though each of them might be alone."""


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


def types_of(schema: Any, root: Mapping[str, Any]) -> frozenset[str] | None:
    """The types that a schema names, at least those of the values that it accepts; None if it names none, or refers to
    itself. root: the document that `$ref` refers to."""
    found = _alternatives(schema, root, _named_types)
    return None if found is None else frozenset().union(*found)


def values_of(schema: Any, root: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema lists, at least those that it accepts; None if it lists none, or more than MOST_MEMBERS.
    root: as in `types_of`."""
    found = _alternatives(schema, root, _listed_values)
    if found is None or sum(map(len, found)) > MOST_MEMBERS:
        return None
    return [value for values in found for value in values]


def _named_types(schema: Mapping[str, Any]) -> frozenset[str] | None:
    match schema:
        case {"type": str() | list() as named}:
            kinds = frozenset(map(str, [named] if isinstance(named, str) else named))
            return kinds if kinds <= {*TYPES} else None
        case {"const": value}:
            return frozenset({json_type(value)})
        case {"enum": [_, *_] as values}:
            return frozenset(map(json_type, values))
        case _:
            return None


def _listed_values(schema: Mapping[str, Any]) -> list[Any] | None:
    match schema:
        case {"const": value}:
            return [value]
        case {"enum": [*values]}:
            return values
        case {"type": "null"}:
            return [None]
        case _:
            return None


def _alternatives(
    schema: Any, root: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T | None]
) -> list[T] | None:
    """What `read` finds in a schema, or else in each of its alternatives, behind references. None if it finds nothing
    in one of them, or more than MOST_LOOKED schemas would have to be read."""
    found: list[T] = []
    waiting, looked = [(schema, REFERENCES)], 0
    while waiting:
        part, left = waiting.pop()
        looked += 1
        if not isinstance(part, Mapping) or left == 0 or looked > MOST_LOOKED:
            return None
        if (value := read(part)) is not None:
            found.append(value)
        elif behind := _behind(part, root):
            waiting += [(other, left - 1) for other in reversed(behind)]
        else:
            return None
    return found


def _behind(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Any]:
    """The schemas that together accept at least what a schema accepts; none if they are not known."""
    match schema:
        case {"$ref": reference}:
            try:
                return [resolve(reference, root)]
            except GrammarError:
                return []
        case {"anyOf": [_, *_] as parts} | {"oneOf": [_, *_] as parts}:
            return parts if len(parts) <= REFERENCES else []
        case {"allOf": [part]}:
            return [part]
        case _:
            return []


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
