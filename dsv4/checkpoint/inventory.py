"""The content of a checkpoint folder, by the headers of its files, and all its problems.

Only safetensors files are read. Pickle files can run code when loaded and are refused.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from dsv4.checkpoint.format import MAX_TENSORS, CheckpointError, StoredTensor, read_header, read_json
from dsv4.checkpoint.requantized import PackedWeight, recognise
from dsv4.checkpoint.spellings import released_entries
from dsv4.checkpoint.unused import unused
from dsv4.config.json_file import foreign_content
from dsv4.config.ranges import shown

INDEX_NAME = "model.safetensors.index.json"
# Lies in a folder from the first to the last byte of a conversion: such a folder is not a checkpoint yet.
UNFINISHED_NAME = "conversion.unfinished.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(slots=True)
class Inventory:
    """The content of a folder and all its problems."""

    entries: dict[str, StoredTensor] = field(default_factory=dict)
    packed: dict[str, PackedWeight] = field(default_factory=dict)  # what only a conversion reads, by parameter
    left_out: dict[str, str] = field(default_factory=dict)  # tensors no text model uses, with the reason
    problems: list[str] = field(default_factory=list)
    unreadable: set[Path] = field(default_factory=set)  # files already reported as a whole
    total_size: int | None = None  # as the index claims
    bytes: int = 0  # of all tensors


def take_inventory(folder: Path) -> Inventory:
    """Read all headers of a folder. Never raises for the folder's content: problems are listed.

    Names and types have the release's spelling (see `spellings`); the index is compared before that. Tensors that a
    text model does not use (see `unused`) and weights of other quantisers (see `requantized`) are kept apart.
    """
    inventory = Inventory()
    try:
        _fill(folder, inventory)
    except (CheckpointError, OSError) as error:
        inventory.problems.append(str(error))
    return inventory


def file_problems(file: Path, tensors: Collection[str] | None) -> list[str]:
    """The problems of one weight file alone: of its header, and against the tensors that an index says it holds (None
    without an index). Never raises for the file's content."""
    inventory = Inventory()
    _add_file(file, inventory)
    if tensors is not None:
        _compare_with_index(file.parent, dict.fromkeys(tensors, file.name), inventory)
    return inventory.problems


def _fill(folder: Path, inventory: Inventory) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: {_why_no_folder(folder)}")
    if (folder / UNFINISHED_NAME).exists():
        raise CheckpointError(f"{folder}: an unfinished conversion; run `dsv4 convert` again to complete it")
    index = _read_index(folder, inventory)
    files = sorted(set(index.values())) if index is not None else _files_without_index(folder)
    for file_name in files:
        _add_file(folder / file_name, inventory)
    if index is not None:
        _compare_with_index(folder, index, inventory)
    inventory.bytes = sum(entry.spec.nbytes for entry in inventory.entries.values())
    entries = released_entries(inventory.entries)
    inventory.left_out = unused(entries)
    for name in inventory.left_out:
        del entries[name]
    inventory.entries, inventory.packed = recognise(entries)


def _read_index(folder: Path, inventory: Inventory) -> dict[str, str] | None:
    """The index's weight_map, or None where the folder has no index."""
    file = folder / INDEX_NAME
    if not file.exists() and not file.is_symlink():
        return None
    raw = read_json(file)
    weight_map = raw.get("weight_map")
    if not isinstance(weight_map, dict) or not 0 < len(weight_map) <= MAX_TENSORS:
        raise CheckpointError(f"{file}: weight_map must be an object of 1 to {MAX_TENSORS:,} entries")
    plain = {shard for shard in set(map(str, weight_map.values())) if _is_plain(shard)}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard not in plain:
            raise CheckpointError(
                f"{file}: tensor {name!r} must lie in a .safetensors file of this folder, got {shown(shard)}"
            )
    metadata = raw.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int):
        inventory.total_size = metadata["total_size"]
    return weight_map


def _is_plain(shard: str) -> bool:
    """Whether an index may name this file: one of its own folder."""
    return Path(shard).name == shard and "\0" not in shard and shard.endswith(".safetensors")


def _files_without_index(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("adapter"))
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
    raise CheckpointError(_why_nothing(folder))


def _why_no_folder(file: Path) -> str:
    """What lies where a model's folder was looked for."""
    if not file.exists():
        return "no such folder"
    if file.is_file():
        with file.open("rb") as stream:
            foreign = foreign_content(stream.read(512))
        if foreign:
            return f"{foreign}; a model is a folder"
        if file.suffix == ".safetensors" or file.name == "config.json":
            return f"not a folder: the model is {file.parent}"
    return "not a folder"


def _why_nothing(folder: Path) -> str:
    """Which other files a folder without safetensors files has."""
    present = sorted(path.name for path in folder.iterdir())
    if any(name in present for name in ("adapter_config.json", "adapter_model.safetensors", "adapters.safetensors")):
        return describe_adapter(folder) + " and no model: load its base and give this folder as --adapter"
    below = sorted(file.parent for depth in ("*", "*/*") for file in folder.glob(f"{depth}/*.safetensors"))
    if below:  # as in the folder of a training run, beside whose state lies the model
        return f"{folder}: no safetensors files; {below[0]} has some"
    kinds = (
        (".gguf", "a GGUF file: `dsv4 convert FILE FOLDER` makes a folder of it that loads"),
        (tuple(PICKLE_SUFFIXES), "pickle files can run code and are not read; convert them to safetensors"),
        ((".incomplete", ".part", ".aria2", ".crdownload", ".tmp"), "a download or conversion that was not finished"),
        ((".gz", ".zip", ".tar", ".tgz", ".zst", ".xz"), "unpack it first"),
    )
    for suffixes, text in kinds:
        for name in present:
            if name.lower().endswith(suffixes):
                return f"{folder / name}: {text}"
    return f"{folder}: no safetensors files"


def adapter_files(folder: Path) -> list[str]:
    """Names of a PEFT adapter's files in a folder; usually none."""
    return sorted(path.name for path in folder.glob("adapter*") if path.suffix in (".json", ".safetensors", ".bin"))


def describe_adapter(folder: Path) -> str:
    """'FOLDER: a LoRA adapter for BASE', as far as its own config can be read."""
    kind, base = "an", ""
    try:
        raw = read_json(folder / "adapter_config.json")
        if isinstance(raw.get("peft_type"), str):
            name = raw["peft_type"][:40]
            kind = "a LoRA" if name.upper() == "LORA" else f"a {name}"
        if isinstance(raw.get("base_model_name_or_path"), str):
            base = f" for {raw['base_model_name_or_path'][:200]}"
    except (CheckpointError, OSError):
        pass
    return f"{folder}: holds {kind} adapter{base}"


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
    paths = {shard: folder / shard for shard in set(index.values())}
    for name, shard in index.items():
        file = paths[shard]
        entry = inventory.entries.get(name)
        if file in inventory.unreadable:
            continue
        if entry is None:
            inventory.problems.append(f"{file}: tensor {name!r} is in the index but not in the file")
        elif entry.file is not file and entry.file != file:
            inventory.problems.append(f"{file}: tensor {name!r} is in {entry.file.name} instead")
    for name, entry in inventory.entries.items():
        if name not in index:
            inventory.problems.append(f"{entry.file}: tensor {name!r} is not in the index")
