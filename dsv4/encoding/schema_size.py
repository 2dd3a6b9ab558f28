"""Limits on the size of a schema that a grammar enforces: the time to compile grows faster than some parts of a
schema."""

from collections.abc import Mapping
from typing import Any

MOST_PARTS = 20_000
MOST_DEPTH = 50
# schemas in one object of properties, one list of alternatives
MOST_MEMBERS = 1_000
GROUPS = ("properties", "patternProperties", "anyOf", "oneOf", "allOf", "prefixItems", "required")
# numbers with more digits than any that is meant
MOST_DIGITS = 300


class GrammarError(ValueError):
    """A schema or pattern that cannot be enforced; the message names what is not supported."""


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
