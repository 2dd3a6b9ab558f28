"""The fields of a recipe by their dotted names: unknown fields, changes by `--set`, and messages for wrong values."""

import dataclasses
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dsv4.training.text_files import read_text

R = TypeVar("R")
# pydantic's name of a mistake -> our message
_MUST = {
    "int": "must be an integer",
    "float": "must be a number",
    "string": "must be text",
    "bool": "must be true or false",
    "tuple": "must be a list",
    "list": "must be a list",
    "dict": "must be a table",
    "dataclass": "must be a table",
}


def read_recipe(
    make: Callable[[dict[str, Any]], R], file: str | Path, changes: Iterable[str], known: Callable[[], str] = str
) -> R:
    """What `make` gives for a TOML file with `changes`, "dotted.key=value" with TOML values. known: the end of the
    message for a file that is not there. Raises ValueError naming the file and the field."""
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{path}: no such recipe{known()}")
    try:
        raw = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    for change in changes:
        set_field(raw, change)
    try:
        return make(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def strictly(kind: type[R], values: Mapping[str, Any], where: str = "") -> R:
    """The dataclass of these values; no value is converted but whole floats. Raises ValueError naming the field."""
    try:
        # JSON, because its strict reading still makes tuples of lists
        return TypeAdapter(kind).validate_json(json.dumps(whole_numbers(values), default=str), strict=True)
    except ValidationError as error:
        raise ValueError(explain(error, where)) from None


def set_field(raw: dict[str, Any], change: str) -> None:
    """Set one field, given as "dotted.key=value" with a TOML value; a value that is no TOML is text.
    Raises ValueError for a path that leads nowhere; `check_fields` checks whether the field exists."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set needs key=value, got {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    place: Any = raw
    for i, parent in enumerate(parents):
        where = ".".join(parents[:i])
        place = place.setdefault(parent, {}) if isinstance(place, dict) else place[_entry(place, parent, where, change)]
        if not isinstance(place, dict | list):
            raise ValueError(f"--set {change}: {'.'.join(parents[: i + 1])} is no table, but {place!r}")
    if isinstance(place, list):
        place[_entry(place, last, ".".join(parents), change)] = value
    else:
        place[last] = value


def _entry(place: list[Any], part: str, where: str, change: str) -> int:
    """The number of a list's entry that `part` names."""
    if not part.isdecimal() or int(part) >= len(place):
        known = f"entries 0 to {len(place) - 1}" if place else "no entries"
        raise ValueError(f"--set {change}: {where} has {known}, got {part!r}")
    return int(part)


def check_fields(kind: type, raw: Any, where: str = "") -> None:
    """Raise ValueError naming a field that the dataclass `kind` does not have, with those it has, or a number that is
    not finite; anything else is left to the types."""
    if not isinstance(raw, Mapping):
        return
    prefix = f"{where}." if where else ""
    hints = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    for name, value in raw.items():
        if name not in known:
            raise ValueError(f"{prefix}{name} is not a field; known fields: {', '.join(sorted(known))}")
        inner = _dataclass_in(hints[name])
        values = enumerate(value) if isinstance(value, list | tuple) else [(None, value)]
        for number, part in values:
            place = f"{prefix}{name}" if number is None else f"{prefix}{name}.{number}"
            if isinstance(part, float) and not math.isfinite(part):
                raise ValueError(f"{place} must be finite, got {part}")
            if inner is not None:
                check_fields(inner, part, place)


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that a field holds: alone, in a tuple, or as an optional value."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return next((found for arg in get_args(hint) if (found := _dataclass_in(arg)) is not None), None)


def whole_numbers(raw: Any) -> Any:
    """The same with 3e6 as 3000000, which TOML writes as a float; a source's options stay as they are."""
    if isinstance(raw, Mapping):
        return {name: value if name == "options" else whole_numbers(value) for name, value in raw.items()}
    if isinstance(raw, list | tuple):
        return [whole_numbers(value) for value in raw]
    return int(raw) if isinstance(raw, float) and raw.is_integer() else raw


def explain(error: ValidationError, where: str = "") -> str:
    """A message for the first mistake: the field, the values it may have, the value it has."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
    kind, given = first["type"], first["input"]
    if kind == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        if place.startswith("stages."):
            message = message.replace("stage.", f"{place}.", 1)
        return message if not place or message.startswith(place) else f"{place}: {message}"
    if kind == "missing":
        return f"{place} is missing"
    shown = "a table" if isinstance(given, dict) else repr(given)
    if kind in ("literal_error", "enum"):
        return f"{place} must be {first.get('ctx', {}).get('expected')}, got {shown}"
    must = _MUST.get(kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float"))
    if must is None:
        return f"{place}: {first['msg']}"
    return f"{place} {must}, got {shown}"


def first_difference(a: Any, b: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """The dotted name of the first value that two recipes as JSON do not share, and both values; None where they are
    alike. Of lists of named entries that differ in length, the values are the names."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted({*a, *b}):
            found = first_difference(a.get(name), b.get(name), f"{where}.{name}".lstrip("."))
            if found is not None:
                return found
        return None
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        parts = (first_difference(x, y, f"{where}.{i}") for i, (x, y) in enumerate(zip(a, b, strict=True)))
        return next((found for found in parts if found is not None), None)
    if isinstance(a, list) and isinstance(b, list) and all(isinstance(x, dict) and "name" in x for x in (*a, *b)):
        a, b = [x["name"] for x in a], [x["name"] for x in b]
    return None if a == b else (where, a, b)
