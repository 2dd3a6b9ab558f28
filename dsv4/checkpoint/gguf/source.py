"""Open a GGUF file as a model's folder is opened: its config, a reader of its tensors, its tokenizer.

Tensors get their released names. Those of float types are read where they lie; types that pack values become weights
that only a conversion reads (`reader.packed`), a routed expert being its slice of the tensor of all experts. A file cut
in parts (`name-00001-of-00003.gguf`) is opened by any of its parts.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsv4.checkpoint.folder import ModelFolder, left_out_notes
from dsv4.checkpoint.format import CheckpointError, StoredTensor, TensorSpec
from dsv4.checkpoint.gguf.blocks import BLOCKS, blocks_spec, method_of
from dsv4.checkpoint.gguf.container import MAGIC, GgufFile, GgufTensor, read_gguf
from dsv4.checkpoint.gguf.metadata import config_of
from dsv4.checkpoint.gguf.names import parameter_of
from dsv4.checkpoint.gguf.vocabulary import tokenizer_definition
from dsv4.checkpoint.inventory import Inventory
from dsv4.checkpoint.reader import CheckpointReader, raise_problems
from dsv4.checkpoint.requantized import PackedWeight
from dsv4.checkpoint.tokenizer_file import FILE_NAME
from dsv4.checkpoint.writer import write_json
from dsv4.config import ModelConfig

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_PREDICTION = "the prediction block of the file is not read"
_IMAGES = "a vision model's router bias for image tokens"


@dataclass(frozen=True, slots=True)
class GgufSource:
    """An opened file with all its parts, the first one first. tokenizer: its tokenizer.json, None if it has none."""

    parts: tuple[GgufFile, ...]
    folder: ModelFolder
    tokenizer: dict[str, Any] | None

    def tensors(self) -> list[GgufTensor]:
        """Those of all parts, also the ones that the model does not use."""
        return [tensor for part in self.parts for tensor in part.tensors.values()]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.end - tensor.begin for tensor in self.tensors())

    def bytes_by_type(self) -> dict[str, int]:
        """Bytes of the tensors of each type by its name, largest first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors():
            sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.end - tensor.begin
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))

    def write_small_files(self, target: Path) -> None:
        """What a folder has beside its weights and config: the tokenizer."""
        if self.tokenizer is not None:
            target.joinpath(FILE_NAME).write_bytes(json.dumps(self.tokenizer, ensure_ascii=False).encode())
            write_json(target / "tokenizer_config.json", _tokenizer_config(self.folder.config, self.parts[0]))


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its name or its first bytes."""
    named = path.suffix.lower() == ".gguf"
    if named or not path.is_file():
        return named
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def open_gguf(path: str | Path) -> GgufSource:
    """Open a DeepSeek-V4 file by its path, or by that of any of its parts.

    Raises FileNotFoundError, or CheckpointError naming file and key or tensor. Reads headers only.
    """
    files = _files(Path(path))
    parts = tuple(read_gguf(file) for file in files)
    config = config_of(parts[0])
    inventory = Inventory()
    for part in parts:
        for tensor in part.tensors.values():
            _add(part.file, tensor, config, inventory)
    raise_problems(inventory.problems)
    reader = CheckpointReader(files[0], inventory)
    folder = ModelFolder(config, reader, tuple(left_out_notes(reader)))
    return GgufSource(parts, folder, tokenizer_definition(parts[0], config.vocab_size))


def _files(path: Path) -> list[Path]:
    """All parts of a file in order. Raises CheckpointError naming a missing one."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path]
    files = [path.with_name(f"{part[1]}-{i:05d}-of-{part[3]}.gguf") for i in range(1, int(part[3]) + 1)]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        names = ", ".join(file.name for file in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise CheckpointError(f"{path}: is one of {int(part[3])} parts; missing beside it: {names or 'all'}")
    return files


def _add(file: Path, tensor: GgufTensor, config: ModelConfig, inventory: Inventory) -> None:
    """Put one tensor of a file into the inventory."""
    layer = re.match(r"blk\.(\d+)\.", tensor.name)
    if layer is not None and int(layer[1]) >= config.num_hidden_layers:
        inventory.left_out[tensor.name] = _PREDICTION
        return
    name = parameter_of(tensor.name)
    if name is None:
        if tensor.name.endswith(".exp_probs_b_vl.bias"):
            inventory.left_out[tensor.name] = _IMAGES
        else:
            inventory.problems.append(f"{file}: tensor {tensor.name!r} is none of DeepSeek-V4's")
        return
    if "*" in name and _expert_count(tensor) > config.n_routed_experts:
        counts = f"{_expert_count(tensor):,} experts, the model {config.n_routed_experts:,}"
        inventory.problems.append(f"{file}: tensor {tensor.name!r} has {counts}")
        return
    for own, part in _expert_slices(name, tensor):
        if own in inventory.entries or own in inventory.packed:
            inventory.problems.append(f"{file}: tensor {tensor.name!r} is also in another part")
        elif part.type.dtype is not None:
            spec = TensorSpec(part.type.dtype, part.shape)
            inventory.entries[own] = StoredTensor(file, spec, part.begin, part.end)
        else:
            stored = StoredTensor(file, blocks_spec(part.type, part.shape), part.begin, part.end)
            inventory.packed[own] = PackedWeight(method_of(part.type), {BLOCKS: stored})


def _expert_count(tensor: GgufTensor) -> int:
    return tensor.shape[0] if len(tensor.shape) == 3 else 1


def _expert_slices(name: str, tensor: GgufTensor) -> Iterator[tuple[str, GgufTensor]]:
    """The tensor itself, or each expert's slice of one of all experts (`*` in the name)."""
    if "*" not in name:
        yield name, tensor
        return
    shape = tensor.shape[1:] if len(tensor.shape) == 3 else tensor.shape
    size = tensor.type.bytes_of(shape)
    for e in range(_expert_count(tensor)):
        begin = tensor.begin + e * size
        yield name.replace("*", str(e)), replace(tensor, shape=shape, begin=begin, end=begin + size)


def _tokenizer_config(config: ModelConfig, opened: GgufFile) -> dict[str, object]:
    tokens = opened.metadata["tokenizer.ggml.tokens"]
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": tokens[config.bos_token_id],
        "eos_token": tokens[config.eos_token_id],
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
