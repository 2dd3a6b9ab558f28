"""Checks from the file, without building a tokenizer, that a folder's tokenizer.json belongs to the model."""

from pathlib import Path
from typing import Any

from dsv4.config.json_file import read_object
from dsv4.config.ranges import shown

FILE_NAME = "tokenizer.json"
_MOST_BYTES = 256 << 20


def read_tokenizer_file(folder: Path) -> dict[str, Any] | None:
    """The parsed tokenizer.json of a folder, or None if there is none: such a model takes token ids only.

    Raises ValueError naming the file and what is wrong.
    """
    file = folder / FILE_NAME
    if not file.exists() and not file.is_symlink():
        return None
    return read_object(file, _MOST_BYTES)


def size_notes(folder: Path, definition: dict[str, Any], vocab_size: int) -> list[str]:
    """Notes on harmless differences from a model of `vocab_size` tokens: a padded vocabulary.

    Raises ValueError where the tokenizer cannot belong to the model.
    """
    file, size = folder / FILE_NAME, _size(folder / FILE_NAME, definition)
    if size == vocab_size:
        return []
    if size > vocab_size:
        raise ValueError(f"{file}: has {size:,} tokens, more than vocab_size {vocab_size:,}: it is another model's")
    return [
        f"{file}: has {size:,} tokens, vocab_size is {vocab_size:,}: "
        f"the {vocab_size - size:,} ids above are padding and stand for no text"
    ]


def _size(file: Path, raw: dict[str, Any]) -> int:
    """One more than the largest token id."""
    model = raw.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        raise ValueError(f"{file}: model.vocab must be an object of tokens and ids, got {shown(vocabulary)}")
    if not vocabulary:
        raise ValueError(f"{file}: model.vocab must hold tokens, it is empty")
    ids = [*vocabulary.values(), *_added(file, raw.get("added_tokens") or [])]
    for i in ids:
        if type(i) is not int or i < 0:
            raise ValueError(f"{file}: token ids must be integers from 0, got {shown(i)}")
    return max(ids) + 1


def _added(file: Path, tokens: Any) -> list[Any]:
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise ValueError(f"{file}: added_tokens must be a list of objects, got {shown(tokens)}")
    return [token.get("id") for token in tokens]
