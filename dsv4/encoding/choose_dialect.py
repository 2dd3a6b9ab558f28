"""Which dialect a model uses: by name, or by its folder."""

import json
from pathlib import Path
from typing import Any

from dsv4.encoding.dialect import V4, V4_0731, V41, Dialect

DIALECTS = {dialect.name: dialect for dialect in (V4, V4_0731, V41)}
"""All dialects by name."""
# stands in the effort texts of the final weights' encoding script, and in no other
NEW_EFFORT = "Beyond maximum"


def dialect_named(name: str) -> Dialect:
    """The dialect of a name such as `v4-0731`. Raises ValueError naming all dialects."""
    if name not in DIALECTS:
        raise ValueError(f"dialect: expected one of {', '.join(DIALECTS)}, got {name!r}")
    return DIALECTS[name]


def dialect_of_folder(folder: Path) -> Dialect:
    """The dialect of a model folder's weights; the first of these that is present decides:

    `dialect` in generation_config.json; the encoding script in `encoding/` (its effort texts and system token);
    config.json (a V4.1 model; keys of DSpark that are set, which came with the final weights); else April's.
    Raises ValueError for a name it does not know. A file that is not JSON is ignored here; the code that needs it
    reports it.
    """
    if (name := _json(folder / "generation_config.json").get("dialect")) is not None:
        return dialect_named(name)
    files = [
        file for file in sorted(folder.glob("encoding/*.py")) if file.is_file()
    ]  # a named pipe would wait for ever
    text = "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    if V41.system in text:
        return V41
    if NEW_EFFORT in text:
        return V4_0731
    config = _json(folder / "config.json")
    kinds = [config.get("model_type"), *(config.get("architectures") or ())]
    if any(str(kind).lower().replace("_", "").startswith("deepseekv41") for kind in kinds):
        return V41
    newer = any(value for key, value in config.items() if key.startswith("dspark_"))
    return V4_0731 if newer and not text else V4


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes()) if file.is_file() else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
