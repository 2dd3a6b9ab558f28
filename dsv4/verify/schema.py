"""Whether a JSON value fits a schema: the keywords that the questions of this package use, and common ones."""

from collections.abc import Mapping
from typing import Any

from dsv4.encoding.schema import json_type


def misfit(value: Any, schema: object, place: str = "") -> str:
    """What does not fit, with its place; "" if the value fits. Knows type, enum, const, properties, required,
    additionalProperties: false, items, minItems, maxItems, minimum, maximum, anyOf. A schema that is no object, as
    true or a list of items, is not known, and any value fits it."""
    if not isinstance(schema, Mapping):
        return ""
    where = place or "the value"
    if "anyOf" in schema:
        wrong = [misfit(value, choice, place) for choice in schema["anyOf"]]
        return "" if "" in wrong else wrong[0]
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not _is_one_of(value, kinds):
        return f"{where} is {json_type(value)}, not {' or '.join(kinds)}"
    if ("enum" in schema and value not in schema["enum"]) or ("const" in schema and value != schema["const"]):
        return f"{where} is {value!r}, which is not allowed"
    if isinstance(value, Mapping):
        return _object_misfit(value, schema, place)
    if isinstance(value, list):
        return _list_misfit(value, schema, place)
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        return "" if low <= value <= high else f"{where} is {value}, not in [{low}, {high}]"
    return ""


def _is_one_of(value: Any, kinds: list[str]) -> bool:
    kind = json_type(value)
    return kind in kinds or (kind == "integer" and "number" in kinds)


def _object_misfit(value: Mapping[str, Any], schema: Mapping[str, Any], place: str) -> str:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            return f"{place}.{name} is missing".lstrip(".")
    for name, inner in value.items():
        if name in properties:
            wrong = misfit(inner, properties[name], f"{place}.{name}".lstrip("."))
        else:
            unknown = schema.get("additionalProperties") is False
            wrong = f"{place}.{name} is not in the schema".lstrip(".") if unknown else ""
        if wrong:
            return wrong
    return ""


def _list_misfit(value: list[Any], schema: Mapping[str, Any], place: str) -> str:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return f"{place or 'the list'} has {len(value)} items"
    # NOTE: without items no value is entered: one that a model has written may be nested deeper than calls may be
    for index, inner in enumerate(value if "items" in schema else ()):
        if wrong := misfit(inner, schema["items"], f"{place}[{index}]"):
            return wrong
    return ""
