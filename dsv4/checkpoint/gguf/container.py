"""The GGUF container, versions 2 and 3: header in, header out. Nothing here reads tensor data.

A file is the word "GGUF", version, counts, key-value pairs, a list of tensors (name, dimensions from the inside out,
type, offset), then the data, each tensor at a multiple of `general.alignment`. Every claim of a file is checked before
it is used: the file may be truncated or hostile. Source: the format's description in ggml (docs/gguf.md).
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dsv4.checkpoint.format import MAX_TENSORS, CheckpointError, file_size
from dsv4.checkpoint.gguf.types import TYPES, GgmlType
from dsv4.config.json_file import foreign_content, text_content
from dsv4.config.ranges import shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
_ALIGNMENT_KEY = "general.alignment"
_MAX_KEYS = 65_536
_MAX_ITEMS = 1 << 24  # of one array; the largest tokenizers have 2^18
_MAX_STRING = 64 << 20
_MAX_NAME = 1024
_MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
# number of a value's type -> letter of struct; 7 is a bool
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_NUMBERS = {letter: number for number, letter in _SCALARS.items()}


@dataclass(frozen=True, slots=True)
class Scalars:
    """Numbers of one type to be written as one value or an array: a letter of struct (I, i, f, ?, ...) and them."""

    letter: str
    values: Sequence[int | float | bool]
    array: bool = True


MetadataValue = str | Scalars | Sequence[str]  # to be written: text, numbers, an array of texts


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a file. shape: outer dimension first, as in torch. begin, end: byte offsets from the start."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file's key-value pairs (numbers, bools, texts and lists of them) and its tensors by name, in data order."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(file: Path) -> GgufFile:
    """The header of a file. Raises CheckpointError naming file and key or tensor; FileNotFoundError."""
    size = file_size(file)
    with file.open("rb") as stream:
        head = stream.read(512)
        if not head.startswith(MAGIC):
            said = foreign_content(head) or text_content(head) or "not a GGUF file: it does not begin with GGUF"
            raise CheckpointError(f"{file}: {said}")
        stream.seek(len(MAGIC))
        cursor = _Cursor(file, stream, size - len(MAGIC))
        (version,) = cursor.numbers("I", 1, "version")
        if version not in VERSIONS:
            raise CheckpointError(f"{file}: GGUF version must be {' or '.join(map(str, VERSIONS))}, got {version:,}")
        tensor_count, key_count = cursor.numbers("Q", 2, "counts")
        for what, count, most in (("tensors", tensor_count, MAX_TENSORS), ("keys", key_count, _MAX_KEYS)):
            if count > most:
                raise CheckpointError(f"{file}: may have at most {most:,} {what}, claims {count:,}")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = cursor.text("a key", _MAX_NAME)
            if key in metadata:
                raise CheckpointError(f"{file}: the key {key!r} occurs twice")
            metadata[key] = cursor.value(f"key {key!r}")
        found = [_tensor(cursor) for _ in range(tensor_count)]
        alignment = _alignment(file, metadata)
        start = _aligned(size - cursor.left, alignment)
    return GgufFile(file, metadata, _placed(file, found, start, size, alignment))


def _alignment(file: Path, metadata: Mapping[str, Any]) -> int:
    value = metadata.get(_ALIGNMENT_KEY, ALIGNMENT)
    if type(value) is not int or not 8 <= value <= 1 << 20 or value & (value - 1):
        text = f"must be a power of two from 8 to {1 << 20}, got {shown(value)}"
        raise CheckpointError(f"{file}: {_ALIGNMENT_KEY} {text}")
    return value


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _tensor(cursor: "_Cursor") -> tuple[str, GgmlType, tuple[int, ...], int]:
    """Name, type, shape and offset of one entry of the list."""
    name = cursor.text("a tensor's name", _MAX_NAME)
    where = f"{cursor.file}: tensor {name!r}"
    (dimensions,) = cursor.numbers("I", 1, f"tensor {name!r}")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise CheckpointError(f"{where}: must have 1 to {_MAX_DIMENSIONS} dimensions, got {dimensions:,}")
    shape = tuple(reversed(cursor.numbers("Q", dimensions, f"tensor {name!r}")))
    (number,) = cursor.numbers("I", 1, f"tensor {name!r}")
    (offset,) = cursor.numbers("Q", 1, f"tensor {name!r}")
    kind = TYPES.get(number)
    if kind is None:
        raise CheckpointError(f"{where}: unknown tensor type {number}")
    if math.prod(shape) >= 1 << 62 or not math.prod(shape):
        raise CheckpointError(f"{where}: impossible shape {list(shape)}")
    if shape[-1] % kind.values:
        raise CheckpointError(
            f"{where}: {kind.name} packs {kind.values} values of a row, {shape[-1]} columns are no multiple"
        )
    return name, kind, shape, offset


def _placed(
    file: Path, found: list[tuple[str, GgmlType, tuple[int, ...], int]], start: int, size: int, alignment: int
) -> dict[str, GgufTensor]:
    """The tensors with their places, checked against the file and each other."""
    tensors: dict[str, GgufTensor] = {}
    position = start
    for name, kind, shape, offset in sorted(found, key=lambda item: item[3]):
        begin, end = start + offset, start + offset + kind.bytes_of(shape)
        if name in tensors:
            raise CheckpointError(f"{file}: tensor {name!r} occurs twice")
        if offset % alignment:
            raise CheckpointError(f"{file}: tensor {name!r}: offset {offset} is no multiple of {alignment}")
        if begin < position:
            raise CheckpointError(f"{file}: tensor {name!r} overlaps the tensor before it (starts at {begin})")
        if end > size:
            raise CheckpointError(f"{file}: truncated: tensor {name!r} ends at byte {end}, the file at {size}")
        tensors[name] = GgufTensor(name, kind, shape, begin, end)
        position = end
    return tensors


class _Cursor:
    """Reads a header forward and never past the end of the file. left: bytes behind the cursor."""

    def __init__(self, file: Path, stream: BinaryIO, left: int) -> None:
        self.file = file
        self.left = left
        self._stream = stream

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise CheckpointError(f"{self.file}: truncated in the header, at {what}")
        data = self._stream.read(count)
        if len(data) < count:
            raise CheckpointError(f"{self.file}: truncated in the header, at {what}")
        self.left -= count
        return data

    def numbers(self, letter: str, count: int, what: str) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{count}{letter}")
        return layout.unpack(self.take(layout.size, what))

    def text(self, what: str, most: int = _MAX_STRING) -> str:
        (length,) = self.numbers("Q", 1, what)
        if length > most:
            raise CheckpointError(f"{self.file}: {what} has {length:,} bytes, at most {most:,} are read")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.file}: {what} is not valid UTF-8") from None

    def value(self, what: str) -> Any:
        (kind,) = self.numbers("I", 1, what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY:
            return self.numbers(self._letter(kind, what), 1, what)[0]
        (kind,) = self.numbers("I", 1, what)
        (count,) = self.numbers("Q", 1, what)
        if count > _MAX_ITEMS:
            raise CheckpointError(f"{self.file}: {what} has {count:,} items, at most {_MAX_ITEMS:,} are read")
        if kind == _STRING:
            return [self.text(what) for _ in range(count)]
        return list(self.numbers(self._letter(kind, what), count, what))

    def _letter(self, kind: int, what: str) -> str:
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.file}: {what}: values of type {kind} are not read")
        return _SCALARS[kind]


def encode_gguf_header(
    metadata: Mapping[str, MetadataValue], tensors: Mapping[str, tuple[GgmlType, tuple[int, ...]]]
) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a version 3 file that holds these tensors (type and shape, outer dimension first) in this
    order, and the offset of each from the start of the file."""
    parts = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _encoded(value)]
    offsets, position = {}, 0
    for name, (kind, shape) in tensors.items():
        parts += [_text(name), struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))]
        parts.append(struct.pack("<IQ", kind.number, position))
        offsets[name] = position
        position = _aligned(position + kind.bytes_of(shape), ALIGNMENT)
    header = b"".join(parts)
    header += b"\0" * (_aligned(len(header), ALIGNMENT) - len(header))
    return header, {name: len(header) + offset for name, offset in offsets.items()}


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _encoded(value: MetadataValue) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, Scalars):
        number, data = _NUMBERS[value.letter], struct.pack(f"<{len(value.values)}{value.letter}", *value.values)
        if value.array:
            return struct.pack("<IIQ", _ARRAY, number, len(value.values)) + data
        return struct.pack("<I", number) + data
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
