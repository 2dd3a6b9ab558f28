"""The text of messages that consist of parts. The model reads only text: other parts become placeholders.

A client sends every earlier part again, so refusing a picture would end its session. The placeholders are those of the
official service. A request with `"unsupported": "error"` is refused instead.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from dsv4.server.wire.errors import show

Unsupported = Literal["placeholder", "error"]
TEXT_KINDS = frozenset({"text", "input_text", "output_text", "reasoning_text", "summary_text"})
IMAGE = "[Unsupported Image]"
PLACEHOLDERS = {
    "image": IMAGE,
    "image_url": IMAGE,
    "input_image": IMAGE,
    "file": IMAGE,
    "input_file": "[Unsupported Document]",
}


def text_of_parts(value: object, unsupported: Unsupported | None, *, joiner: str = "\n\n") -> str:
    """The text of a string or a list of parts. Null is the empty text; nulls in the list are skipped.

    Raises ValueError for any other value, for a part without its text, and with "error" for a part that is not text.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise ValueError(f"expected a string or a list of parts, got {show(value)}")
    texts: list[str] = []
    for index, part in enumerate(value):
        if part is None:
            continue
        try:
            texts.append(part if isinstance(part, str) else part_text(part, unsupported))
        except ValueError as error:
            raise ValueError(f"part {index}: {error}") from None
    return joiner.join(texts)


def result_text(value: object, unsupported: Unsupported | None) -> str:
    """The text of a tool's result: as `text_of_parts`, and any other value as JSON, because tools return any value."""
    if isinstance(value, Mapping) and value.get("type") in TEXT_KINDS:
        return part_text(value, unsupported)
    if isinstance(value, Mapping | bool | int | float):
        return json.dumps(value, ensure_ascii=False)
    return text_of_parts(value, unsupported)


def part_text(part: object, unsupported: Unsupported | None) -> str:
    """The text of one part. Raises ValueError as `text_of_parts` does."""
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise ValueError(f"expected an object with a type, got {show(part)}")
    kind = part["type"]
    if kind in TEXT_KINDS:
        # null is the empty text: some clients store empty answers in this way
        text = part.get("text", part)
        if text is not None and not isinstance(text, str):
            raise ValueError(f"text must be a string, got {show(part.get('text'))}")
        return text or ""
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return part["refusal"]
    if kind == "compaction" and isinstance(part.get("content"), str):
        return part["content"]
    if kind == "search_result" and isinstance(part.get("content"), list):
        head = [part[name] for name in ("title", "source") if isinstance(part.get(name), str)]
        return "\n".join([*head, text_of_parts(part["content"], unsupported)])
    if unsupported == "error":
        raise ValueError(f"this model reads text only, got {show(kind)}")
    if kind == "document":
        return f"[Unsupported document type: {_media_type(part.get('source'))}]"
    return PLACEHOLDERS.get(kind, f"[Unsupported {kind[:64]}]")


def _media_type(source: Any) -> str:
    kind = source.get("media_type") if isinstance(source, Mapping) else None
    return kind[:64] if isinstance(kind, str) else "unknown"
