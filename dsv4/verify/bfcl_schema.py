"""Schemas of BFCL's function documents as JSON Schema, and what in them is no schema, by its field."""

from collections.abc import Mapping
from typing import Any

# types of BFCL's function documents -> JSON Schema, as its harness sends them to an OpenAI endpoint; it sends every
# other name as "string"
JSON_TYPES = {
    "integer": "integer", "number": "number", "float": "number", "string": "string", "boolean": "boolean",
    "bool": "boolean", "array": "array", "list": "array", "tuple": "array", "dict": "object", "object": "object",
    "any": "string", "null": "null",
    "byte": "integer", "short": "integer", "long": "integer", "Bigint": "integer", "double": "number",
    "Array": "array", "ArrayList": "array", "Queue": "array", "Stack": "array", "HashMap": "object",
    "Hashtable": "object",
}  # fmt: skip
MOST_DEPTH = 50  # schemas inside one another
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
# what tells the values without a type
_TELLING = ("anyOf", "oneOf", "allOf", "not", "enum", "const", "$ref")


def object_schema(parameters: object, place: str) -> dict[str, Any]:
    """The schema of a function's arguments. place: its name in messages. Raises ValueError naming the field."""
    if not isinstance(parameters, Mapping):
        raise wrong(place, "must be an object", parameters)
    if parameters.get("type", "dict") not in ("dict", "object"):
        raise wrong(f"{place}.type", 'must be "dict" or "object"', parameters["type"])
    return _schema({**parameters, "type": "dict"}, place, 1)


def wrong(place: str, rule: str, got: object) -> ValueError:
    """The error of a field."""
    words: dict[object, str] = {None: "null", True: "true", False: "false"}
    shown = words[got] if got is None or isinstance(got, bool) else f"{got!r:.60}"
    return ValueError(f"{place} {rule}, got {shown}")


def _schema(schema: Mapping[str, Any], place: str, depth: int, *, value: bool = True) -> dict[str, Any]:
    """value: the schema of a property or of items, which is one of texts where it tells nothing."""
    if depth > MOST_DEPTH:
        raise ValueError(f"{place} must not be deeper than {MOST_DEPTH} schemas")
    _check(schema, place)
    made = dict(schema)
    if "type" in schema or (value and not any(name in schema for name in _TELLING)):
        made["type"] = _json_type(schema.get("type", "string"), place)
    if schema.get("type") == "float":
        made["format"] = "float"
        made["description"] = f"{schema.get('description', '')} This is a float type value.".strip()
    for name in _BY_NAME:
        if name in schema:
            inner = schema[name]
            made[name] = {key: _part(inner[key], f"{place}.{name}.{key}", depth) for key in inner}
    for name in (*_LISTS, "items"):
        if isinstance(schema.get(name), list):
            made[name] = [
                _part(inner, f"{place}.{name}[{index}]", depth, value=name == "items")
                for index, inner in enumerate(schema[name])
            ]
    for name in _SINGLE:
        if name in schema and not isinstance(made[name], list):
            made[name] = _part(schema[name], f"{place}.{name}", depth, value=name == "items")
    return made


def _part(schema: object, place: str, depth: int, *, value: bool = True) -> Any:
    """A schema inside another. JSON Schema has true and false too."""
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise wrong(place, "must be a schema (an object, true or false)", schema)
    return _schema(schema, place, depth + 1, value=value)


def _json_type(kind: object, place: str) -> str | list[str]:
    if isinstance(kind, str):
        return JSON_TYPES.get(kind, "string")
    if not isinstance(kind, list) or not kind or not all(isinstance(one, str) for one in kind):
        raise wrong(f"{place}.type", "must be the name of a type, or a list of at least one", kind)
    return list(dict.fromkeys(JSON_TYPES.get(one, "string") for one in kind))


def _check(schema: Mapping[str, Any], place: str) -> None:
    """Raise ValueError for the first keyword whose value has another form than JSON Schema gives it."""
    for names, right, rule in _FORMS:
        for name in names:
            if name in schema and not right(schema[name]):
                raise wrong(f"{place}.{name}", rule, schema[name])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_FORMS = (
    (_BY_NAME, lambda value: isinstance(value, Mapping), "must be an object of schemas"),
    (_LISTS, lambda value: isinstance(value, list) and bool(value), "must be a list of at least one schema"),
    (("required",), _is_names, "must be a list of names"),
    (("enum",), lambda value: isinstance(value, list) and bool(value), "must be a list of at least one value"),
    (("description",), lambda value: isinstance(value, str), "must be a text"),
    (_BOUNDS, _is_number, "must be a number"),
    (
        _COUNTS,
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        "must be a whole number of at least 0",
    ),
)
