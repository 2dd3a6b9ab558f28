"""Anthropic's tools that the client runs. Clients send them without description and schema, because Claude knows them.

The served model does not, so its prompt shows the descriptions and schemas of this file.
"""

from collections.abc import Mapping
from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
WHOLE: dict[str, Any] = {"type": "integer"}
PAIR: dict[str, Any] = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}


EDITS: dict[str, Any] = {
    "view_range": PAIR,
    "file_text": TEXT,
    "old_str": TEXT,
    "new_str": TEXT,
    "insert_line": WHOLE,
    "insert_text": TEXT,
}


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


# type without its date -> description and schema of the input
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "bash": (
        "Runs a command in a bash session that stays open between calls. `restart` begins a new session.",
        _object((), command=TEXT, restart={"type": "boolean"}),
    ),
    "text_editor": (
        "Views, creates and edits files. view: `view_range` picks lines; create: `file_text` is the whole file; "
        "str_replace: `old_str`, which must stand in the file once, becomes `new_str`; insert: `insert_text` goes "
        "behind line `insert_line`.",
        _object(
            ("command", "path"),
            command={"type": "string", "enum": ["view", "create", "str_replace", "insert"]},
            path=TEXT,
            **EDITS,
        ),
    ),
    "memory": (
        "Keeps notes in files under /memories between conversations. view: a file or a folder; create: `file_text` is "
        "the whole file; str_replace: `old_str` becomes `new_str`; insert: `insert_text` goes behind line "
        "`insert_line`; delete; rename: `old_path` to `new_path`.",
        _object(
            ("command",),
            command={"type": "string", "enum": ["view", "create", "str_replace", "insert", "delete", "rename"]},
            path=TEXT,
            **EDITS,
            old_path=TEXT,
            new_path=TEXT,
        ),
    ),
    "computer": (
        "Uses mouse and keyboard of a screen. `coordinate` is [x, y] in pixels; `text` is what is typed or the key.",
        _object(
            ("action",),
            action=TEXT,
            coordinate=PAIR,
            start_coordinate=PAIR,
            text=TEXT,
            scroll_direction={"type": "string", "enum": ["up", "down", "left", "right"]},
            scroll_amount=WHOLE,
            duration={"type": "number"},
        ),
    ),
}


def known_tool(tool: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Description and schema of a typed tool such as `bash_20250124`; None for other tools."""
    kind = tool.get("type")
    name, _, date = kind.rpartition("_") if isinstance(kind, str) else ("", "", "")
    return KNOWN.get(name) if date.isdecimal() else None
