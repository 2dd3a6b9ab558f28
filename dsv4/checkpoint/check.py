"""Verify a checkpoint folder without reading tensor data: files, names, dtypes and shapes."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dsv4.checkpoint.format import CheckpointError, Entry
from dsv4.checkpoint.names import (
    BASE,
    BF16,
    FP32,
    RELEASE,
    RELEASE_FP8,
    Kind,
    Layout,
    expected_tensors,
    parameters,
)
from dsv4.checkpoint.reader import CheckpointReader, Inventory, take_inventory
from dsv4.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Report:
    """What `check_folder` found. `layout` is None when nothing could be read."""

    folder: str
    layout: str | None
    files: int
    tensors: int
    bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return asdict(self) | {"ok": self.ok}


def check_folder(folder: str | Path, config: ModelConfig | None = None) -> Report:
    """Compare a folder with what its config (by default its own config.json) says it must hold.

    Lists every problem: broken or missing files, tensors that are missing, unknown, or of another dtype or
    shape, an index or a config that says something else. Never raises for the folder's content.
    """
    path = Path(folder)
    inventory = take_inventory(path)
    problems = list(inventory.problems)
    if config is None:
        try:
            config = ModelConfig.from_file(path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    layout: Layout | None = None
    if config is not None and inventory.entries:
        layout = _detect(inventory.entries, config)
        problems += _config_problems(path, config, layout)
        problems += _tensor_problems(path, config, layout, inventory)
    total = sum(entry.spec.nbytes for entry in inventory.entries.values())
    if inventory.total_size not in (None, total) and not inventory.problems:
        problems.append(f"{path}: the index gives a total size of {inventory.total_size}, the files hold {total}")
    return Report(
        folder=str(path),
        layout=layout.name if layout else None,
        files=len({entry.file for entry in inventory.entries.values()}),
        tensors=len(inventory.entries),
        bytes=total,
        problems=tuple(problems),
    )


def detect_layout(reader: CheckpointReader, config: ModelConfig) -> Layout:
    """The layout of a folder, told by the first linear and expert it holds (configs do not always say)."""
    names = [name for pair in _witnesses(config) for name in pair]
    specs = {name: Entry(reader.file_of(name), reader.spec(name), 0, 0) for name in names if name in reader}
    return _detect(specs, config)


def _witnesses(config: ModelConfig) -> list[tuple[str, str]]:
    """(weight, scale) names of the first linear and the first routed expert."""
    first = {}
    for parameter in parameters(config):
        if parameter.kind in (Kind.LINEAR, Kind.EXPERT) and parameter.kind not in first:
            first[parameter.kind] = (parameter.name, parameter.scale_name)
        if len(first) == 2:
            break
    return [first[Kind.LINEAR], first[Kind.EXPERT]]


def _detect(entries: dict[str, Entry], config: ModelConfig) -> Layout:
    (linear, linear_scale), (expert, _) = _witnesses(config)
    dtypes = {name: entries[name].spec.dtype for name in (linear, linear_scale, expert) if name in entries}
    if dtypes.get(expert) == torch.int8:
        return RELEASE
    if torch.float8_e4m3fn in (dtypes.get(linear), dtypes.get(expert)):
        return BASE if dtypes.get(linear_scale) == torch.float32 else RELEASE_FP8
    return FP32 if dtypes.get(linear) == torch.float32 else BF16


def _config_problems(path: Path, config: ModelConfig, layout: Layout) -> list[str]:
    file = path / "config.json"
    problems: list[str] = []
    if config.quantized != (layout.linears == "fp8"):
        says = "has" if config.quantized else "has no"
        problems.append(f"{file}: {says} quantization_config, the linears are stored in {layout.linears}")
    if config.quantized and config.expert_dtype not in (None, layout.experts):
        problems.append(f"{file}: expert_dtype is {config.expert_dtype}, the experts are stored in {layout.experts}")
    return problems


def _tensor_problems(path: Path, config: ModelConfig, layout: Layout, inventory: Inventory) -> list[str]:
    problems: list[str] = []
    try:
        expected = expected_tensors(config, layout)
    except CheckpointError as error:
        return [f"{path / 'config.json'}: {error}"]
    entries = inventory.entries
    for name, spec in expected.items():
        entry = entries.get(name)
        if entry is None:
            if not inventory.problems:  # otherwise the broken file or index was already reported
                problems.append(f"{path}: tensor {name!r} is missing")
        elif entry.spec != spec:
            problems.append(f"{entry.file}: tensor {name!r} should be {spec}, is {entry.spec}")
    for name, entry in entries.items():
        drafted = config.draft_stages > 0 and name.startswith("mtp.")
        if name not in expected and not drafted:
            problems.append(f"{entry.file}: unknown tensor {name!r}")
    return problems
