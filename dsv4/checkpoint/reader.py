"""Read a checkpoint folder: headers at once, data only when asked for, through a memory map.

Only safetensors files are read. Pickle files can run code when loaded and are refused.
"""

import mmap
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dsv4.checkpoint.format import CheckpointError, Entry, TensorSpec, read_header, read_json
from dsv4.checkpoint.names import scale_of
from dsv4.kernels.quant import dequantize_fp4_weight, dequantize_fp8_weight

INDEX_NAME = "model.safetensors.index.json"
# Lies in a folder from the first to the last byte of a conversion: such a folder is not a checkpoint yet.
UNFINISHED_NAME = "conversion.unfinished.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(slots=True)
class Inventory:
    """What a folder holds, and everything that is wrong with it."""

    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unreadable: set[Path] = field(default_factory=set)  # files already reported as a whole
    total_size: int | None = None  # as the index claims


class CheckpointReader:
    """A checkpoint folder, opened for reading.

    Raises CheckpointError, naming file and tensor, for anything that is missing, cut off, contradictory or
    not safetensors. Tensors are views of a private map: they cost no memory until touched, writing to one
    never changes the file, and the map lives as long as any of them. The files must not be changed meanwhile.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        inventory = take_inventory(self.folder)
        raise_problems(inventory.problems)
        self._entries = inventory.entries
        self._maps: dict[Path, Tensor] = {}

    def names(self) -> tuple[str, ...]:
        """All tensor names, file after file in data order."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def spec(self, name: str) -> TensorSpec:
        """Stored dtype and shape. Raises CheckpointError for a name that is not there."""
        return self._entry(name).spec

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._entry(name).file

    def tensor(self, name: str) -> Tensor:
        """The tensor exactly as stored."""
        entry = self._entry(name)
        if entry.file not in self._maps:
            self._maps[entry.file] = _map_file(entry.file)
        data = self._maps[entry.file][entry.begin : entry.end]
        if entry.begin % entry.spec.dtype.itemsize:
            data = data.clone()  # the file does not align it, and a tensor may not start just anywhere
        return data.view(entry.spec.dtype).reshape(entry.spec.shape)

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
        dequantize = dequantize_fp4_weight if spec.dtype == torch.int8 else dequantize_fp8_weight
        try:
            return dequantize(self.tensor(name), self.tensor(scale_name), dtype)
        except ValueError as error:
            raise CheckpointError(f"{self.file_of(scale_name)}: tensor {scale_name!r}: {error}") from None

    def maps(self) -> tuple[Tensor, ...]:
        """The maps of the files read so far, as bytes."""
        return tuple(self._maps.values())

    def release(self) -> None:
        """Forget the maps; tensors already handed out stay valid. Later reads map the files again."""
        self._maps.clear()

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self.folder}: no tensor {name!r}")
        return entry


def raise_problems(problems: list[str], shown: int = 5) -> None:
    """Raise one CheckpointError with the first few problems and the count of the rest, if there are any."""
    if problems:
        more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
        raise CheckpointError("; ".join(problems[:shown]) + more)


def take_inventory(folder: Path) -> Inventory:
    """Read all headers of a folder. Never raises for the folder's content: what is wrong is listed."""
    inventory = Inventory()
    if not folder.is_dir():
        inventory.problems.append(f"{folder}: no such folder")
        return inventory
    if (folder / UNFINISHED_NAME).exists():
        inventory.problems.append(f"{folder}: an unfinished conversion; run `dsv4 convert` again to complete it")
        return inventory
    try:
        index = _read_index(folder, inventory)
        files = sorted(set(index.values())) if index is not None else _files_without_index(folder)
    except CheckpointError as error:
        inventory.problems.append(str(error))
        return inventory
    for file_name in files:
        _add_file(folder / file_name, inventory)
    if index is not None:
        _compare_with_index(folder, index, inventory)
    return inventory


def _read_index(folder: Path, inventory: Inventory) -> dict[str, str] | None:
    """The index's weight_map, or None where the folder has no index."""
    file = folder / INDEX_NAME
    if not file.is_file():
        return None
    raw = read_json(file)
    weight_map = raw.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{file}: weight_map must be a non-empty object")
    for name, shard in weight_map.items():
        plain = isinstance(shard, str) and Path(shard).name == shard and "\0" not in shard
        if not plain or Path(shard).suffix != ".safetensors":
            raise CheckpointError(
                f"{file}: tensor {name!r} must lie in a .safetensors file of this folder, got {shard!r}"
            )
    metadata = raw.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int):
        inventory.total_size = metadata["total_size"]
    return weight_map


def _files_without_index(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    shards = [match for match in map(_SHARD.fullmatch, names) if match]
    if shards:
        wanted = [f"model-{i:05d}-of-{shards[0][2]}.safetensors" for i in range(1, int(shards[0][2]) + 1)]
        found = [match[0] for match in shards]
        missing = sorted(set(wanted) ^ set(found))
        if missing:
            raise CheckpointError(
                f"{folder}: no {INDEX_NAME}, and the shards are not one set: see {', '.join(missing[:3])}"
            )
        return found
    if names:
        return ["model.safetensors"] if "model.safetensors" in names else names
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(
            f"{folder / pickles[0]}: pickle files can run code and are not read; convert them to safetensors"
        )
    raise CheckpointError(f"{folder}: no safetensors files")


def _add_file(file: Path, inventory: Inventory) -> None:
    try:
        entries = read_header(file)
    except (CheckpointError, OSError) as error:
        missing = isinstance(error, FileNotFoundError)
        text = str(error) if isinstance(error, CheckpointError) else f"{file}: {'missing' if missing else error}"
        inventory.problems.append(text)
        inventory.unreadable.add(file)
        return
    for name, entry in entries.items():
        if name in inventory.entries:
            other = inventory.entries[name].file.name
            inventory.problems.append(f"{file}: tensor {name!r} is also in {other}")
        else:
            inventory.entries[name] = entry


def _compare_with_index(folder: Path, index: dict[str, str], inventory: Inventory) -> None:
    for name, shard in index.items():
        file = folder / shard
        entry = inventory.entries.get(name)
        if file in inventory.unreadable:
            continue
        if entry is None:
            inventory.problems.append(f"{file}: tensor {name!r} is in the index but not in the file")
        elif entry.file != file:
            inventory.problems.append(f"{file}: tensor {name!r} is in {entry.file.name} instead")
    for name, entry in inventory.entries.items():
        if name not in index:
            inventory.problems.append(f"{entry.file}: tensor {name!r} is not in the index")


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
