"""The documents of text and JSONL sources, before they become tokens: which files, and which texts in them."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dsv4.training.settings import SourceSettings
from dsv4.training.text_files import INVALID, lines_of

JSONL_SUFFIXES = (".jsonl", ".ndjson")
_PACKED = ".gz"
_JSON_NAMES = {"dict": "an object", "list": "a list", "str": "text", "bool": "true or false", "NoneType": "null"}


def files_of(settings: SourceSettings) -> list[Path]:
    """The files of a text or JSONL source, in order: a file, or those in a folder and below it whose names end as the
    source says, perhaps followed by .gz. Raises ValueError when there is none, saying what is there instead."""
    path = Path(settings.path).expanduser()
    if path.is_file():
        return [path]
    wanted = settings.suffixes if settings.kind == "text" else JSONL_SUFFIXES
    where = f"source {settings.name}: no files at {path}"
    if not path.exists():
        corpus = Path("runs/corpus")
        hint = f"; `python3 -m recipes.corpus {path.name}` makes it" if path.parent == corpus else ""
        raise ValueError(f"{where}: there is no such file or folder{hint}")
    if not path.is_dir():
        raise ValueError(f"{where}: it is neither a file nor a folder")
    found = sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in found if _suffix(file) in wanted]
    if not files:
        raise ValueError(f"{where} that end in {' or '.join(wanted)}{_instead(settings, found)}")
    return files


def _suffix(file: Path) -> str:
    return Path(file.stem).suffix if file.suffix == _PACKED else file.suffix


def _instead(settings: SourceSettings, found: Sequence[Path]) -> str:
    """The files that a folder has instead, and the setting that reads them."""
    endings = Counter(_suffix(file) or "no ending" for file in found)
    if not endings:
        return "; the folder is empty"
    told = ", ".join(f"{count} with {ending}" for ending, count in endings.most_common(4))
    if settings.kind == "text" and any(ending in JSONL_SUFFIXES for ending in endings):
        return f'; there are {told}: kind = "jsonl" reads JSON lines'
    return f"; there are {told}" + (": name them in suffixes" if settings.kind == "text" else "")


def texts_of(settings: SourceSettings, files: Sequence[Path]) -> Iterator[str]:
    """The documents of these files, one after another, without blank ones. Raises ValueError naming file and line of a
    text that cannot be read."""
    if settings.kind == "messages":
        yield from _texts_of_messages(settings, files)
        return
    for file in files:
        found = _lines(settings, file) if settings.kind == "jsonl" else _parts(settings, file)
        yield from (text for text in found if text.strip())


def objects_of(settings: SourceSettings, file: Path, missing: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file's lines, each with its place for messages ("chats.jsonl, line 3"); blank lines are
    left out. missing: the message for a line that is no object. Of conversations a key may not be there twice: one of
    its values would be lost."""
    for number, line in enumerate(lines_of(file, replace=settings.invalid == "replace"), start=1):
        if line.strip():
            where = f"{file}, line {number}"
            yield where, _object_in(line, f"{where}: {missing}", unique=settings.kind == "messages")


def _object_in(line: str, missing: str, *, unique: bool) -> dict[str, Any]:
    try:
        found: Any = json.loads(line.rstrip(), object_pairs_hook=_without_doubles if unique else None)
    except json.JSONDecodeError as error:
        raise ValueError(f"{missing}: not valid JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, and brackets thousands deep
        raise ValueError(f"{missing}: not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{missing}, but {_kind(found)}")
    return found


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        doubled = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {doubled!r} is there twice in one object")
    return found


def _texts_of_messages(settings: SourceSettings, files: Sequence[Path]) -> Iterator[str]:
    """The texts of the messages of conversations, to train a tokenizer on."""
    for file in files:
        for _, conversation in objects_of(settings, file, "no conversation"):
            messages = conversation.get("messages")
            for message in messages if isinstance(messages, list) else ():
                said = (message.get(name) for name in ("reasoning_content", "content") if isinstance(message, dict))
                yield from (text for text in said if isinstance(text, str) and text.strip())


def _lines(settings: SourceSettings, file: Path) -> Iterator[str]:
    for where, found in objects_of(settings, file, f"no JSON object with the key {settings.key!r}"):
        yield _text_in(settings, found, where)


def _text_in(settings: SourceSettings, found: dict[str, Any], where: str) -> str:
    """The text under the source's key in one line of JSON."""
    missing = f"{where}: no JSON object with the key {settings.key!r}"
    if settings.key not in found:
        keys = ", ".join(map(repr, list(found)[:8])) or "none"
        raise ValueError(f"{missing}; its keys are {keys}")
    text = found[settings.key]
    if not isinstance(text, str):
        raise ValueError(f"{where}: {settings.key!r} must be text, got {_kind(text)}")
    return _without_surrogates(settings, text, where)


def _kind(value: object) -> str:
    return _JSON_NAMES.get(type(value).__name__, "a number")


def _without_surrogates(settings: SourceSettings, text: str, where: str) -> str:
    """Replace or refuse lone surrogates (\\ud83d), which JSON can hold and UTF-8 cannot."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError as error:
        if settings.invalid == "replace":
            return "".join(INVALID if "\ud800" <= char <= "\udfff" else char for char in text)
        half = f"\\u{ord(text[error.start]):04x}"
        raise ValueError(
            f"{where}: {settings.key!r} has the lone surrogate {half} at character {error.start + 1}; "
            'invalid = "replace" in the source reads it as U+FFFD'
        ) from None


def _parts(settings: SourceSettings, file: Path) -> Iterator[str]:
    """Paragraphs gathered up to `characters`; one longer than that stays whole."""
    gathered: list[str] = []
    size = 0
    for line in lines_of(file, replace=settings.invalid == "replace"):
        gathered.append(line)
        size += len(line)
        if size >= settings.characters and not line.strip():
            yield "".join(gathered)
            gathered, size = [], 0
    yield "".join(gathered)
