"""Documents by number, from shards of tokens on disk or from a function. A number always gives the same document.

Shards are memory-mapped: a corpus larger than memory costs no memory.
"""

import contextlib
import hashlib
import importlib
import inspect
import json
import logging
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dsv4.files import naming, rename, stamp, sync_path
from dsv4.training.settings import SourceSettings
from dsv4.training.source_texts import files_of, objects_of, texts_of

_log = logging.getLogger(__name__)

ReadProgress = Callable[[str, int], None]  # name of the source, tokens so far


@dataclass(frozen=True, slots=True)
class Document:
    """tokens: numbers, or an array of whole numbers, which may lie on the disk until a batch is made of it. learn: how
    much each token counts as a target; None = all the same."""

    tokens: Sequence[int] | np.ndarray
    learn: Sequence[float] | np.ndarray | None = None

    def __post_init__(self) -> None:
        if not len(self.tokens):
            raise ValueError("a document must not be empty")
        if self.learn is not None and len(self.learn) != len(self.tokens):
            raise ValueError(f"learn has {len(self.learn)} numbers for {len(self.tokens)} tokens")


class Codec(Protocol):
    """The methods of a tokenizer that training uses."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    def token_id(self, text: str) -> int: ...

    def encode_text(self, text: str, trusted: bool = False) -> list[int]: ...

    def encode_conversation(self, conversation: Any) -> tuple[list[tuple[list[int], list[int]]], int]:
        """(tokens, learn) of each example of a conversation, and how many of its answers are only context."""
        ...

    def definition_json(self) -> str: ...


class Source(Protocol):
    """Documents by number. `count` is None where there is no end."""

    digest: str  # the same for the same documents: a run that goes on compares it

    @property
    def count(self) -> int | None: ...

    def document(self, number: int) -> Document: ...


Maker = Callable[..., Document | str]


class GeneratedDocuments:
    """Documents made by `function(rng, codec, **options)`; a text is encoded between begin and end tokens.

    Raises ValueError naming the source when the function fails or returns something else."""

    count = None

    def __init__(self, settings: SourceSettings, codec: Codec, seed: int) -> None:
        self._settings, self._codec, self._seed = settings, codec, seed
        self._make = function_of(settings)
        # a function has no content to compare: its first documents stand for it
        first = [np.array(self.document(number).tokens, dtype=np.int64) for number in range(_TRIED)]
        self.digest = _digest(*first)

    def document(self, number: int) -> Document:
        rng = random.Random(f"{self._seed}/{self._settings.name}/{number}")
        where = f"source {self._settings.name}: {self._settings.path} for document {number}"
        made = call_named(where, self._make, rng, self._codec, **self._settings.options)
        if isinstance(made, str):
            made = Document([self._codec.bos_id, *self._codec.encode_text(made), self._codec.eos_id])
        if not isinstance(made, Document):
            raise ValueError(f"{where} returned {type(made).__name__}; it must return text or a Document")
        low, high = min(made.tokens), max(made.tokens)
        if low < 0 or high >= self._codec.vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"{where} returned token {wrong}; tokens must be in [0, {self._codec.vocab_size})")
        return made


_TRIED = 4


def function_of(settings: SourceSettings) -> Maker:
    """The function a generator source names. Raises ValueError naming the source."""
    return named_function(f"source {settings.name}", settings.path, settings.options)


def named_function(where: str, path: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """What "module:function" names, which must have these options. Modules of the current folder count too: `python -m`
    looks there, an installed command does not. Raises ValueError that begins with `where`."""
    module, colon, name = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        made = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing runs the user's own code: it may raise anything
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}: path {path!r} is no module:function ({what})") from error
    if not colon or not callable(made):
        raise ValueError(f"{where}: path must be module:function, got {path!r}")
    known = inspect.signature(made).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"{where}: {path} has no option {unknown[0]!r}")
    return made


def call_named(where: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call what `named_function` gave. Whatever it raises becomes a ValueError that begins with `where` and names the
    line of the user's file."""
    try:
        return function(*args, **options)
    except Exception as error:  # the user's own code: it may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{last.filename}, line {last.lineno}"
        raise ValueError(f"{where} raised {type(error).__name__}: {error} ({at})") from error


class TokenShard:
    """Tokens of all documents in one file, and the start of each: written once, then memory-mapped.

    Raises DamagedShard when the content differs from what was written: opening reads all of it once.
    """

    def __init__(self, folder: Path) -> None:
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            self.digest: str = about["digest"]
            self._tokens = np.memmap(folder / TOKENS, dtype=about["dtype"], mode="r")
            self._starts = np.load(folder / STARTS, mmap_mode="r")
            self._learn = np.memmap(folder / LEARN, dtype=np.uint8, mode="r") if "learned" in about else None
            self.context_only: int = about.get("context_only", 0)
            counts = len(self._starts) - 1, len(self._tokens)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DamagedShard(f"{folder}: {error!r}") from None
        if counts != (about["documents"], about["tokens"]):
            raise DamagedShard(f"{folder}: {counts[1]:,} tokens of {about['tokens']:,}")
        if _digest(*_parts(self._tokens, self._starts, self._learn)) != self.digest:
            raise DamagedShard(f"{folder}: its content has changed since it was written")

    @property
    def count(self) -> int:
        return len(self._starts) - 1

    @property
    def tokens(self) -> int:
        return len(self._tokens)

    def document(self, number: int) -> Document:
        first, last = int(self._starts[number]), int(self._starts[number + 1])
        return Document(self._tokens[first:last], None if self._learn is None else self._learn[first:last])

    @property
    def lengths(self) -> np.ndarray:
        """Of all documents, in tokens."""
        return np.diff(self._starts)

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return self.tokens if self._learn is None else int(np.count_nonzero(self._learn))


ABOUT, TOKENS, STARTS, LEARN = "shard.json", "tokens.bin", "starts.npy", "learn.bin"


def _parts(tokens: np.ndarray, starts: np.ndarray, learn: np.ndarray | None) -> tuple[np.ndarray, ...]:
    return (tokens, starts) if learn is None else (tokens, starts, learn)


class DamagedShard(ValueError):
    """A shard's files are cut, changed or missing."""


def shard_of(settings: SourceSettings, codec: Codec, folder: Path, progress: ReadProgress | None = None) -> TokenShard:
    """The shard of a source of files under `folder`, made if it is not there, its files have changed, or it is
    damaged. Processes that make the same one at a time do not disturb each other."""
    files = files_of(settings)
    digest = hashlib.blake2b(repr((settings, codec.definition_json())).encode(), digest_size=8)
    if settings.kind == "messages":  # how a codec writes one is no part of its definition
        digest.update(repr(codec.encode_conversation(_SAMPLE)).encode())
    for file in files:
        digest.update("{} {} {}".format(file, *stamp(file)).encode(errors="surrogateescape"))
    place = folder / f"{settings.name}-{digest.hexdigest()}"
    if (place / ABOUT).exists():
        try:
            return TokenShard(place)
        except DamagedShard as error:
            _log.warning("%s; it is made again from its source", error)
            shutil.rmtree(place)
    for left in folder.glob(f"{place.name}.*.new"):  # by processes that were killed
        if not Path("/proc", left.name.split(".")[-2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    staging = folder / f"{place.name}.{os.getpid()}.new"
    try:
        with naming(staging):
            _write_shard(settings, codec, files, staging, progress)
            for file in staging.iterdir():
                sync_path(file)
        with contextlib.suppress(OSError):  # another process was faster: its shard is the same
            rename(staging, place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return TokenShard(place)


def _write_shard(
    settings: SourceSettings, codec: Codec, files: list[Path], place: Path, progress: ReadProgress | None
) -> None:
    """One pass over the texts."""
    place.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if codec.vocab_size <= 2**16 else np.uint32
    starts, total = [0], 0
    about: dict[str, Any] = {"dtype": np.dtype(dtype).name}
    learns = settings.kind == "messages"
    if learns:
        about |= {"learned": 0, "context_only": 0}
    with (place / TOKENS).open("wb") as out, (place / LEARN).open("wb") as marks:
        for tokens, learn in _encoded(settings, codec, files, about):
            out.write(np.array(tokens, dtype=dtype).tobytes())
            marks.write(bytes(learn))
            total += len(tokens)
            starts.append(total)
            if progress is not None:
                progress(settings.name, total)
    if total == 0:
        raise ValueError(
            f"source {settings.name}: no {'conversation' if learns else 'text'} found under {settings.path}"
        )
    np.save(place / STARTS, np.array(starts, dtype=np.int64))
    if not learns:
        (place / LEARN).unlink()
    learn = np.memmap(place / LEARN, dtype=np.uint8, mode="r") if learns else None
    tokens = np.memmap(place / TOKENS, dtype=dtype, mode="r")
    digest = _digest(*_parts(tokens, np.array(starts, dtype=np.int64), learn))
    about |= {"documents": len(starts) - 1, "tokens": total, "digest": digest}
    (place / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _encoded(
    settings: SourceSettings, codec: Codec, files: list[Path], about: dict[str, Any]
) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens of each document and, of conversations alone, which of them are learned; counts go into `about`."""
    if settings.kind != "messages":
        for text in texts_of(settings, files):
            yield [codec.bos_id, *codec.encode_text(text), codec.eos_id], []
        return
    for file in files:
        for where, conversation in objects_of(settings, file, "no conversation"):
            try:
                examples, context_only = codec.encode_conversation(conversation)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            about["context_only"] += context_only
            for tokens, learn in examples:
                about["learned"] += sum(learn)
                yield tokens, learn


_SAMPLE = {
    "messages": [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c", "reasoning_content": "d"},
    ]
}


def _digest(*arrays: np.ndarray) -> str:
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        for first in range(0, len(array), _DIGEST_STEP):
            found.update(array[first : first + _DIGEST_STEP].tobytes())
    return found.hexdigest()


_DIGEST_STEP = 1 << 22
