"""The safetensors container: header in, header out. Nothing here reads tensor data.

A file is an 8-byte little-endian length, that many bytes of JSON (name -> dtype, shape, data_offsets), then
the data without gaps. Every claim of a file is checked before it is used: the file may be truncated or hostile.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from dsv4.config.json_file import foreign_content, parse_object, read_object, size_of, text_content
from dsv4.config.ranges import shown

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 400_000  # of one file or index; the largest release has 149,782
_INDEX_BYTES = 256 << 20
# Packed 4-bit floats, whose shape counts values: read as the bytes that other files call I8.
_PACKED = "F4"
_FIELDS = {"dtype", "shape", "data_offsets"}

# In the order in which the safetensors library lays tensors out: widest alignment first, so that all are
# aligned.
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "I64": torch.int64,
        "F64": torch.float64,
        "F32": torch.float32,
        "I32": torch.int32,
        "BF16": torch.bfloat16,
        "F16": torch.float16,
        "I16": torch.int16,
        "F8_E8M0": torch.float8_e8m0fnu,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
_NAMES: Mapping[torch.dtype, str] = MappingProxyType({dtype: name for name, dtype in _DTYPES.items()})
_RANK: Mapping[torch.dtype, int] = MappingProxyType({dtype: i for i, dtype in enumerate(_DTYPES.values())})


class CheckpointError(ValueError):
    """A checkpoint folder is invalid; the text names the file and the tensor."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The dtype and shape of a stored tensor, as in the file (packed FP4 counts bytes, not values)."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{_NAMES[self.dtype]} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of one file; `begin` and `end` are byte offsets from the start of the file."""

    file: Path
    spec: TensorSpec
    begin: int
    end: int


def file_size(file: Path) -> int:
    """Bytes of a regular file. Raises FileNotFoundError, and CheckpointError for a folder, pipe, socket or device."""
    try:
        return size_of(file)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, in data order. Raises CheckpointError."""
    size = file_size(file)
    with file.open("rb") as stream:
        prefix = stream.read(8)
        (length,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (size,)
        if length > size - 8 or not length:
            stream.seek(0)
            head = stream.read(512)
            foreign = foreign_content(head) or text_content(head)
            if foreign:
                raise CheckpointError(f"{file}: {foreign}")
        if len(prefix) < 8:
            raise CheckpointError(f"{file}: truncated: {size} bytes are not a safetensors file")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(f"{file}: header of {length} bytes is above the limit of {MAX_HEADER_BYTES}")
        if length > size - 8:
            raise CheckpointError(f"{file}: truncated: the header needs {length} bytes, the file has {size - 8}")
        raw = _parse_header(file, stream.read(length))
    start = 8 + length
    kinds: dict[tuple[str, tuple[int, ...]], tuple[TensorSpec, int]] = {}
    entries = [(name, _entry(file, name, value, start, kinds)) for name, value in raw.items() if name != "__metadata__"]
    entries.sort(key=lambda item: (item[1].begin, item[1].end))
    position = start
    for name, entry in entries:
        if entry.end > size:
            raise CheckpointError(f"{file}: truncated: tensor {name!r} ends at byte {entry.end}, the file at {size}")
        if entry.begin != position:
            kind = "overlaps the tensor before it" if entry.begin < position else "leaves a gap before it"
            raise CheckpointError(f"{file}: tensor {name!r} {kind} (starts at {entry.begin}, expected {position})")
        position = entry.end
    if position != size:
        raise CheckpointError(f"{file}: {size - position} bytes after the last tensor")
    return dict(entries)


def encode_header(specs: Mapping[str, TensorSpec]) -> bytes:
    """The first bytes of a file that holds `specs` in this order: length and header, padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        offsets = [offset, offset + spec.nbytes]
        header[name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
        offset += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def data_order(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The order in which the safetensors library stores tensors: each aligned to its own width."""
    return dict(sorted(specs.items(), key=lambda item: (_RANK[item[1].dtype], item[0])))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file (index, marker). Raises CheckpointError for anything else."""
    try:
        return read_object(file, _INDEX_BYTES)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _parse_header(file: Path, data: bytes) -> dict[str, Any]:
    # counted before it is parsed: a million empty tensors take no data, but minutes
    if data.count(b'"data_offsets"') > MAX_TENSORS:
        raise CheckpointError(f"{file}: more than {MAX_TENSORS:,} tensors in one file")
    try:
        return parse_object(str(file), data)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _entry(
    file: Path, name: str, value: Any, start: int, kinds: dict[tuple[str, tuple[int, ...]], tuple[TensorSpec, int]]
) -> StoredTensor:
    """One tensor of a header. kinds: the specs seen before, with their bytes; tensors of one kind share theirs."""
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise CheckpointError(f"{file}: tensor {name!r}: expected dtype, shape and data_offsets")
    label, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not _natural(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        where = f"{file}: tensor {name!r}"
        raise CheckpointError(f"{where}: data_offsets must be [begin, end], got {shown(offsets)}")
    known = kinds.get((label, tuple(shape))) if isinstance(label, str) and _natural(shape) else None
    if known is None:
        spec = _spec(f"{file}: tensor {name!r}", label, shape)
        known = kinds[label, tuple(shape)] = spec, spec.nbytes
    spec, size = known
    if size != offsets[1] - offsets[0]:
        text = f"{spec} needs {size} bytes, data_offsets give {offsets[1] - offsets[0]}"
        raise CheckpointError(f"{file}: tensor {name!r}: {text}")
    return StoredTensor(file, spec, start + offsets[0], start + offsets[1])


def _spec(where: str, label: Any, shape: Any) -> TensorSpec:
    dtype = _DTYPES.get("I8" if label == _PACKED else label) if isinstance(label, str) else None
    if dtype is None:
        raise CheckpointError(f"{where}: unknown dtype {shown(label)}")
    if not _natural(shape) or len(shape) > 16:
        raise CheckpointError(f"{where}: shape must be a short list of integers from 0, got {shown(shape)}")
    if label == _PACKED:
        if not shape or shape[-1] % 2:
            raise CheckpointError(f"{where}: 4-bit values need an even last dimension, got {shown(shape)}")
        shape = [*shape[:-1], shape[-1] // 2]
    return TensorSpec(dtype, tuple(shape))


def _natural(values: Any) -> bool:
    """A list of integers in [0, 2^63)."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int}:
        return False
    return not values or (min(values) >= 0 and max(values) < 2**63)
