"""Read a checkpoint folder through a memory map: headers at once, data on access."""

import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from dsv4.checkpoint.format import CheckpointError, StoredTensor, TensorSpec
from dsv4.checkpoint.inventory import Inventory, take_inventory
from dsv4.checkpoint.requantized.method import Parts
from dsv4.kernels.moe import EqualTensors
from dsv4.kernels.quant import dequantize_weight
from dsv4.parameters import scale_of

R = TypeVar("R")
_MAP_BYTES = 1 << 28  # read between two releases of a long pass


class CheckpointReader:
    """A checkpoint folder, opened for reading.

    Raises CheckpointError, naming file and tensor, for anything that is missing, truncated, contradictory or not
    safetensors. Tensors are views of a private map: they cost no memory until touched, writing to one never changes the
    file, and the map lives as long as any of them. The files must not change during that time.
    """

    def __init__(self, folder: str | Path, inventory: Inventory | None = None) -> None:
        """`inventory`: the inventory of the folder, if there is one already; the caller then reports its problems."""
        self.folder = Path(folder)
        if inventory is None:
            inventory = take_inventory(self.folder)
            raise_problems(inventory.problems)
        self._entries = inventory.entries
        self.nbytes = sum(entry.end - entry.begin for entry in self._entries.values())  # of all tensors
        self.packed = inventory.packed  # weights of other quantisers, by parameter: see `unpacked`
        self.left_out = inventory.left_out
        self._maps: dict[Path, Tensor] = {}
        self._passed = 0

    def names(self) -> tuple[str, ...]:
        """All tensor names, file after file in data order."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def spec(self, name: str) -> TensorSpec:
        """Stored dtype and shape. Raises CheckpointError for an unknown name."""
        return self._entry(name).spec

    def in_place(self, name: str) -> bool:
        """Whether a tensor is a view of its file: one that its file does not align is copied."""
        return _aligned(self._entry(name))

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor, or the tensors of a weight of another quantiser."""
        if name in self.packed:
            return next(iter(self.packed[name].parts.values())).file
        return self._entry(name).file

    def stored_bytes(self, name: str) -> int:
        """Bytes of a tensor, or of the tensors of a weight of another quantiser, in their files."""
        parts = self.packed[name].parts.values() if name in self.packed else (self._entry(name),)
        return sum(part.end - part.begin for part in parts)

    def tensor(self, name: str) -> Tensor:
        """The tensor exactly as stored."""
        return self._read(self._entry(name))

    def unpacked(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A weight of another quantiser (one of `packed`), float32 of this shape. Raises CheckpointError."""
        values = self.packed[name].method.values
        return self._from_parts(name, shape, lambda parts: values(parts, shape))

    def released(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
        """The FP4 weight and scale that a weight of another form holds in another order; None for one that does not.
        Raises CheckpointError."""
        released = self.packed[name].method.released
        return None if released is None else self._from_parts(name, shape, released)

    def _from_parts(self, name: str, shape: tuple[int, ...], read: Callable[[Parts], R]) -> R:
        """What `read` makes of the tensors of a weight of another quantiser, if they can be one of this shape."""
        packed = self.packed[name]
        problem = packed.problem(shape)
        if problem is None:
            try:
                return read({word: self._read(part) for word, part in packed.parts.items()})
            except ValueError as error:
                problem = str(error)
        raise CheckpointError(f"{self.file_of(name)}: tensor {name!r}, {packed.method.name}: {problem}")

    def _read(self, entry: StoredTensor) -> Tensor:
        data = self._map_of(entry.file)[entry.begin : entry.end]
        if not _aligned(entry):
            data = data.clone()  # a tensor may not start just anywhere
        return data.view(entry.spec.dtype).reshape(entry.spec.shape)

    def equal_tensors(self, names: Sequence[str]) -> EqualTensors | None:
        """Tensors of one type and shape, each exactly as stored and made when it is asked for; None if types or shapes
        differ or a file does not align them."""
        entries = [self._entry(name) for name in names]
        spec = entries[0].spec
        if any(entry.spec != spec or not _aligned(entry) for entry in entries):
            return None
        maps = [self._map_of(entry.file) for entry in entries]
        return EqualTensors(maps, [entry.begin for entry in entries], spec.dtype, spec.shape)

    def dequantized(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values of a weight in a float dtype; a quantised one is multiplied out with its `.scale`.

        Exact in float32 and bfloat16 for quantised weights; a float tensor is cast.
        """
        spec = self.spec(name)
        if spec.dtype.is_floating_point and spec.dtype.itemsize > 1:
            return self.tensor(name).to(dtype)
        scale_name = scale_of(name)
        if spec.dtype not in (torch.float8_e4m3fn, torch.int8) or scale_name == name or len(spec.shape) != 2:
            raise CheckpointError(f"{self.file_of(name)}: tensor {name!r} ({spec}) is not a weight")
        if scale_name not in self:
            raise CheckpointError(f"{self.file_of(name)}: tensor {name!r} ({spec}) has no {scale_name!r}")
        try:
            return dequantize_weight(self.tensor(name), self.tensor(scale_name), dtype)
        except ValueError as error:
            raise CheckpointError(f"{self.file_of(scale_name)}: tensor {scale_name!r}: {error}") from None

    def values(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The float32 values of a weight in whatever form it is stored: `unpacked` or `dequantized`."""
        return self.unpacked(name, shape) if name in self.packed else self.dequantized(name)

    def maps(self) -> Mapping[Path, Tensor]:
        """The maps of the files read so far, as bytes."""
        return MappingProxyType(self._maps)

    def release(self) -> None:
        """Drop the maps; tensors that were returned stay valid. Later reads map the files again."""
        self._maps.clear()
        self._passed = 0

    def release_after(self, nbytes: int) -> None:
        """Call it with the bytes of each tensor that a pass through the files is done with: after many of them the maps
        are dropped, because their pages count as this process's own."""
        self._passed += nbytes
        if self._passed > _MAP_BYTES:
            self.release()

    def _map_of(self, file: Path) -> Tensor:
        if file not in self._maps:
            self._maps[file] = _map_file(file)
        return self._maps[file]

    def _entry(self, name: str) -> StoredTensor:
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self.folder}: no tensor {name!r}")
        return entry


def _aligned(entry: StoredTensor) -> bool:
    return not entry.begin % entry.spec.dtype.itemsize


def raise_problems(problems: list[str], shown: int = 5) -> None:
    """Raise one CheckpointError with the first few problems and the count of the rest, if there are any."""
    if problems:
        more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
        raise CheckpointError("; ".join(problems[:shown]) + more)


def _map_file(file: Path) -> Tensor:
    """The whole file as bytes. Copy-on-write, because torch warns about memory it may not write."""
    with file.open("rb") as stream:
        if hasattr(mmap, "MAP_PRIVATE"):
            # Without NORESERVE the kernel may refuse a map larger than its free memory.
            flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
            mapped = mmap.mmap(stream.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        else:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(mapped, dtype=torch.uint8)
