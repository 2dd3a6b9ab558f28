"""Write a checkpoint folder as a stream: at most one tensor is in memory.

All names, dtypes and shapes are known before the first byte. Each shard is written under a temporary name,
synced and renamed; the index comes last. A folder that has an index is therefore complete.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from dsv4.checkpoint.format import CheckpointError, TensorSpec, data_order, encode_header
from dsv4.checkpoint.inventory import INDEX_NAME
from dsv4.files import rename, sync, write_whole

_CHUNK_BYTES = 1 << 24


def shard_name(number: int, count: int) -> str:
    """File name of a shard, counted from 1."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def shards_by_size(plan: Mapping[str, TensorSpec], max_bytes: int) -> Callable[[str], int]:
    """A shard function that fills shards in plan order up to `max_bytes` (a larger tensor gets its own)."""
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
    numbers: dict[str, int] = {}
    number, used = 1, 0
    for name, spec in plan.items():
        if used and used + spec.nbytes > max_bytes:
            number, used = number + 1, 0
        numbers[name] = number
        used += spec.nbytes
    return numbers.__getitem__


class CheckpointWriter:
    """Writes the tensors of `plan` into `folder`, which is created.

    `shard` gives each name its file, counted from 1 without gaps. With `keep_finished`, shards that are
    already there with exactly the planned header and size are kept and need not be written again. Raises
    CheckpointError when the folder already holds a complete checkpoint, and when a tensor does not fit the
    plan. As a context manager it calls `finish` on success and removes temporary files on failure.
    """

    def __init__(
        self,
        folder: str | Path,
        plan: Mapping[str, TensorSpec],
        shard: Callable[[str], int],
        *,
        keep_finished: bool = False,
    ) -> None:
        self.folder = Path(folder)
        if not plan:
            raise CheckpointError(f"{self.folder}: nothing to write")
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / INDEX_NAME).exists():
            raise CheckpointError(f"{self.folder / INDEX_NAME}: the folder already holds a checkpoint")
        self._plan = dict(plan)
        self._shards = [_ShardFile(self.folder / name, specs) for name, specs in _group(plan, shard).items()]
        self._home = {name: item for item in self._shards for name in item.specs}
        for item in self._shards:
            item.finished = keep_finished and item.matches_file()

    @property
    def finished(self) -> frozenset[str]:
        """Names of the tensors whose shard is complete on disk."""
        return frozenset(name for item in self._shards if item.finished for name in item.specs)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor; any order. The shard is synced and renamed with its last tensor."""
        item = self._home.get(name)
        if item is None:
            raise CheckpointError(f"{self.folder}: tensor {name!r} is not in the plan")
        got = TensorSpec(tensor.dtype, tuple(tensor.shape))
        if got != item.specs[name]:
            raise CheckpointError(f"{item.file}: tensor {name!r} should be {item.specs[name]}, got {got}")
        if item.finished or name not in item.waiting:
            raise CheckpointError(f"{item.file}: tensor {name!r} is already written")
        item.write(name, tensor)

    def finish(self) -> None:
        """Write the index. Raises CheckpointError naming the tensors that were never written."""
        missing = [name for item in self._shards if not item.finished for name in sorted(item.waiting)]
        if missing:
            raise CheckpointError(f"{self.folder}: {len(missing)} tensors were not written: {', '.join(missing[:5])}")
        weight_map = {name: self._home[name].file.name for name in self._plan}
        total = sum(spec.nbytes for spec in self._plan.values())
        write_json(self.folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})

    def abort(self) -> None:
        """Close and remove the unfinished shards; finished ones stay."""
        for item in self._shards:
            item.abort()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            self.abort()


class _ShardFile:
    """One file of the folder, under a temporary name until its last tensor is in."""

    def __init__(self, file: Path, specs: dict[str, TensorSpec]) -> None:
        self.file = file
        self.specs = specs
        self.waiting = set(specs)
        self.finished = False
        self._temporary = file.with_name(f".{file.name}.tmp")
        self._stream: BinaryIO | None = None
        self._header = encode_header(specs)
        self._offsets: dict[str, int] = {}
        self._size = len(self._header)
        for name, spec in specs.items():
            self._offsets[name] = self._size
            self._size += spec.nbytes

    def matches_file(self) -> bool:
        """Whether the finished file exists with the planned header and size."""
        if not self.file.is_file() or self.file.stat().st_size != self._size:
            return False
        with self.file.open("rb") as stream:
            return stream.read(len(self._header)) == self._header

    def write(self, name: str, tensor: Tensor) -> None:
        if self._stream is None:
            self._stream = self._temporary.open("wb")
            self._stream.write(self._header)
            self._stream.truncate(self._size)
        self._stream.seek(self._offsets[name])
        flat = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
        for start in range(0, flat.numel(), _CHUNK_BYTES):
            self._stream.write(flat[start : start + _CHUNK_BYTES].numpy().data)
        self.waiting.discard(name)
        if not self.waiting:
            self._publish(self._stream)

    def abort(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            self._temporary.unlink(missing_ok=True)

    def _publish(self, stream: BinaryIO) -> None:
        sync(stream)
        stream.close()
        self._stream = None
        rename(self._temporary, self.file)
        self.finished = True


def write_json(file: Path, value: object) -> None:
    """Write a JSON file so that it exists either completely or not at all."""
    write_whole(file, lambda out: out.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"))


def _group(plan: Mapping[str, TensorSpec], shard: Callable[[str], int]) -> dict[str, dict[str, TensorSpec]]:
    """File name -> its tensors in data order."""
    groups: dict[int, dict[str, TensorSpec]] = {}
    for name, spec in plan.items():
        groups.setdefault(shard(name), {})[name] = spec
    if sorted(groups) != list(range(1, len(groups) + 1)):
        raise ValueError(f"shards must be numbered from 1 without gaps, got {sorted(groups)[:5]}...")
    return {shard_name(number, len(groups)): data_order(groups[number]) for number in sorted(groups)}
