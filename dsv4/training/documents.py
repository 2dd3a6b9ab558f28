"""Documents by number: from shards of tokens on disk, or made by a function. The same number always gives the same one.

Shards are memory-mapped: a corpus larger than memory costs no memory.
"""

import hashlib
import importlib
import inspect
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dsv4.training.recipe import SourceSettings

Progress = Callable[[str, int], None]  # name of the source, tokens so far


@dataclass(frozen=True, slots=True)
class Document:
    """learn: how much each token counts as a target; None = all the same."""

    tokens: Sequence[int]
    learn: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not len(self.tokens):
            raise ValueError("a document must not be empty")
        if self.learn is not None and len(self.learn) != len(self.tokens):
            raise ValueError(f"learn has {len(self.learn)} numbers for {len(self.tokens)} tokens")


class Codec(Protocol):
    """What training needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    def token_id(self, text: str) -> int: ...

    def encode_text(self, text: str, trusted: bool = False) -> list[int]: ...

    def definition_json(self) -> str: ...


class Source(Protocol):
    """Documents by number. `count` is None where there is no end."""

    @property
    def count(self) -> int | None: ...

    def document(self, number: int) -> Document: ...


Maker = Callable[..., Document | str]


class Generated:
    """Documents made by `function(rng, codec, **options)`; text is encoded between begin and end tokens."""

    count = None

    def __init__(self, settings: SourceSettings, codec: Codec, seed: int) -> None:
        self._settings, self._codec, self._seed = settings, codec, seed
        self._make = function_of(settings)

    def document(self, number: int) -> Document:
        rng = random.Random(f"{self._seed}/{self._settings.name}/{number}")
        made = self._make(rng, self._codec, **self._settings.options)
        if isinstance(made, Document):
            return made
        return Document([self._codec.bos_id, *self._codec.encode_text(made), self._codec.eos_id])


def function_of(settings: SourceSettings) -> Maker:
    """The function a generator source names. Raises ValueError naming the source."""
    module, colon, name = settings.path.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"source {settings.name}: path {settings.path!r} is no module:function ({error})") from None
    if not colon or not callable(made):
        raise ValueError(f"source {settings.name}: path must be module:function, got {settings.path!r}")
    known = inspect.signature(made).parameters
    unknown = [option for option in settings.options if option not in known]
    if unknown:
        raise ValueError(f"source {settings.name}: {settings.path} has no option {unknown[0]!r}")
    return made


class Shard:
    """Tokens of all documents in one file, and where each starts: made once, then mapped."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "shard.json").read_text())
        self._tokens = np.memmap(folder / "tokens.bin", dtype=about["dtype"], mode="r")
        self._starts = np.load(folder / "starts.npy", mmap_mode="r")

    @property
    def count(self) -> int:
        return len(self._starts) - 1

    @property
    def tokens(self) -> int:
        return len(self._tokens)

    def document(self, number: int) -> Document:
        first, last = int(self._starts[number]), int(self._starts[number + 1])
        return Document(self._tokens[first:last].tolist())


def shard_of(settings: SourceSettings, codec: Codec, folder: Path, progress: Progress | None = None) -> Shard:
    """The shard of a text or JSONL source under `folder`, made if it is not there or its files have changed."""
    files = files_of(settings)
    digest = hashlib.blake2b(repr((settings, codec.definition_json())).encode(), digest_size=8)
    for file in files:
        stat = file.stat()
        digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode())
    place = folder / f"{settings.name}-{digest.hexdigest()}"
    if not (place / "shard.json").exists():
        _write_shard(settings, codec, files, place, progress)
    return Shard(place)


def _write_shard(
    settings: SourceSettings, codec: Codec, files: list[Path], place: Path, progress: Progress | None
) -> None:
    """One pass over the texts; shard.json is written last, so a folder with it is whole."""
    place.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if codec.vocab_size <= 2**16 else np.uint32
    starts, total = [0], 0
    with (place / "tokens.bin").open("wb") as out:
        for text in texts_of(settings, files):
            tokens = [codec.bos_id, *codec.encode_text(text), codec.eos_id]
            out.write(np.array(tokens, dtype=dtype).tobytes())
            total += len(tokens)
            starts.append(total)
            if progress is not None:
                progress(settings.name, total)
    if total == 0:
        raise ValueError(f"source {settings.name}: no text found under {settings.path}")
    np.save(place / "starts.npy", np.array(starts, dtype=np.int64))
    temporary = place / "shard.json.tmp"
    temporary.write_text(json.dumps({"dtype": np.dtype(dtype).name, "documents": len(starts) - 1, "tokens": total}))
    os.replace(temporary, place / "shard.json")


def files_of(settings: SourceSettings) -> list[Path]:
    """The files of a text or JSONL source, in order. Raises ValueError when there is none."""
    path = Path(settings.path).expanduser()
    if settings.kind == "jsonl" or path.is_file():
        files = [path] if path.is_file() else []
    else:
        files = sorted(file for file in path.rglob("*") if file.suffix in settings.suffixes and file.is_file())
    if not files:
        raise ValueError(f"source {settings.name}: no files at {path}")
    return files


def texts_of(settings: SourceSettings, files: Sequence[Path]) -> Iterator[str]:
    """The documents of these files, one after another; blank ones are left out."""
    for file in files:
        found = _lines(settings, file) if settings.kind == "jsonl" else _parts(settings, file)
        yield from (text for text in found if text.strip())


def _lines(settings: SourceSettings, file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text: Any = json.loads(line)[settings.key]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{file}, line {number}: no JSON object with the key {settings.key!r}") from None
            if not isinstance(text, str):
                raise ValueError(f"{file}, line {number}: {settings.key!r} must be text, got {type(text).__name__}")
            yield text


def _parts(settings: SourceSettings, file: Path) -> Iterator[str]:
    """Paragraphs gathered up to `characters`; one longer than that stays whole."""
    gathered: list[str] = []
    size = 0
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            gathered.append(line)
            size += len(line)
            if size >= settings.characters and not line.strip():
                yield "".join(gathered)
                gathered, size = [], 0
    yield "".join(gathered)
