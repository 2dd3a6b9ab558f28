"""Verify a checkpoint folder: files, names, types, shapes, and the values that loading checks (`deep`: all).

It agrees with loading: a folder that `load` refuses has a problem here, a folder that it accepts has at most a note.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dsv4.checkpoint.folder import adapter_notes, left_out_notes, settle_config
from dsv4.checkpoint.format import TensorSpec
from dsv4.checkpoint.inventory import Inventory, take_inventory
from dsv4.checkpoint.loader import state_problems, table_problems
from dsv4.checkpoint.names import BASE, BF16, BF16_FP4, FP32, FP32_FP4, RELEASE, RELEASE_FP8, Layout, stored
from dsv4.checkpoint.reader import CheckpointReader
from dsv4.checkpoint.tokenizer_file import read_tokenizer_file, size_notes
from dsv4.checkpoint.values import ByteProgress, every_value, is_small, read_at_load, value_problem
from dsv4.config import ModelConfig
from dsv4.config.generation_file import read_generation
from dsv4.parameters import Parameter, Storage, parameters

_FP4_AMONG = {torch.bfloat16: BF16_FP4, torch.float32: FP32_FP4}  # by the type of the linears
MOST_PROBLEMS = 1000  # shown in full; the rest is counted
_DTYPE_NAMES = {
    torch.int8: "fp4",
    torch.float8_e4m3fn: "fp8",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of `check_folder`. `layout` is None when nothing could be read, and names forms of other quantisers
    where there are any; notes do not prevent loading."""

    folder: str
    layout: str | None
    files: int
    tensors: int
    bytes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return asdict(self) | {"ok": self.ok}


def check_folder(
    folder: str | Path,
    config: ModelConfig | None = None,
    *,
    deep: bool = False,
    progress: ByteProgress | None = None,
) -> CheckReport:
    """Compare a folder with its config (by default its own config.json).

    Lists every problem: broken or missing files, tensors that are missing, unknown, or of another type or shape, and
    NaN or infinity where loading would find them; with `deep`, anywhere (progress: called after each tensor with bytes
    done, bytes in all, name). Never raises for the folder's content.
    """
    path = Path(folder)
    inventory = take_inventory(path)
    problems, notes = list(inventory.problems), []
    if config is None and path.is_dir():
        try:
            config = ModelConfig.from_file(path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    layout: Layout | None = None
    if config is not None and inventory.entries:
        reader = CheckpointReader(path, inventory)
        if not inventory.problems:
            config, notes = settle_config(config, reader)
        notes += left_out_notes(reader)
        layout = detect_layout(reader, config)
        problems += _tensor_problems(config, reader, inventory)
        if not problems:
            problems += every_value(reader, progress) if deep else _values_of_a_load(config, reader)
            problems += table_problems(config, reader)
            notes += [*_config_notes(path, config, layout), *_layout_notes(config, reader, layout)]
    if config is not None and path.is_dir():
        _look_beside(path, config, problems, notes)
    if inventory.total_size not in (None, inventory.bytes) and not problems:
        notes.append(
            f"{path}: the index gives a total size of {inventory.total_size}, the files hold {inventory.bytes}"
        )
    forms = sorted({packed.method.name for packed in inventory.packed.values()})
    entries = [*inventory.entries.values(), *(part for p in inventory.packed.values() for part in p.parts.values())]
    return CheckReport(
        folder=str(path),
        layout=", ".join(forms) or (layout.name if layout else None),
        files=len({entry.file for entry in entries}),
        tensors=len(entries),
        bytes=inventory.bytes,
        problems=_shortened(problems),
        notes=tuple(notes),
    )


def _shortened(problems: list[str]) -> tuple[str, ...]:
    more = len(problems) - MOST_PROBLEMS
    return (*problems[:MOST_PROBLEMS], *([f"and {more} more problems"] if more > 0 else []))


def _look_beside(folder: Path, config: ModelConfig, problems: list[str], notes: list[str]) -> None:
    """The other files that a load reads."""
    try:
        notes += adapter_notes(folder)
        definition = read_tokenizer_file(folder)
        if definition is not None:
            notes += size_notes(folder, definition, config.vocab_size)
    except (ValueError, OSError) as error:
        problems.append(str(error))
    try:
        notes += read_generation(folder, config.vocab_size).notes
    except (ValueError, OSError) as error:
        problems.append(str(error))


def detect_layout(reader: CheckpointReader, config: ModelConfig) -> Layout:
    """The layout of a folder, told by the first linear and expert it holds (configs do not always say).

    A mixed folder, or one without some layer, has the layout of the tensors that are there.
    """
    if reader.packed:
        converted = _converted_layout(reader, config)
        if converted is not None:
            return converted
    linear = _first(reader, config, Storage.LINEAR)
    expert = _first(reader, config, Storage.EXPERT)
    dtypes = {spec.dtype for spec in (linear, expert) if spec is not None}
    if expert is not None and expert.dtype == torch.int8:
        return _FP4_AMONG.get(linear.dtype, RELEASE) if linear is not None else RELEASE
    if torch.float8_e4m3fn in dtypes:
        return BASE if torch.float32 in _scale_types(reader) else RELEASE_FP8
    return FP32 if dtypes and dtypes <= {torch.float32} else BF16


def _converted_layout(reader: CheckpointReader, config: ModelConfig) -> Layout | None:
    """The layout that a conversion gives experts of another quantiser: FP4 for 4 bits and less (with the
    scales inside its blocks, less than 5), else FP8."""
    for parameter in parameters(config):
        if parameter.storage is Storage.EXPERT and parameter.name in reader.packed:
            codes = max(part.spec.nbytes for part in reader.packed[parameter.name].parts.values())
            return RELEASE if 8 * codes < 5 * parameter.numbers else RELEASE_FP8
    return None


def _first(reader: CheckpointReader, config: ModelConfig, storage: Storage) -> TensorSpec | None:
    """The first stored weight of a kind, quantised ones before others: some shapes are never quantised."""
    found: TensorSpec | None = None
    for parameter in parameters(config):
        if parameter.storage is not storage or parameter.name not in reader:
            continue
        spec = reader.spec(parameter.name)
        if spec.dtype.itemsize == 1:
            return spec
        found = found or spec
        if storage is Storage.EXPERT:
            break
    return found


def _scale_types(reader: CheckpointReader) -> set[torch.dtype]:
    """The types of the scales beside the first FP8 weight."""
    for name in reader.names():
        scale = name.removesuffix("weight") + "scale"
        if reader.spec(name).dtype == torch.float8_e4m3fn and scale in reader:
            return {reader.spec(scale).dtype}
    return set()


def _tensor_problems(config: ModelConfig, reader: CheckpointReader, inventory: Inventory) -> list[str]:
    """The problems of the tensors as loading sees them. Tensors missing from broken files are not listed again."""
    wanted = [p for p in parameters(config) if not inventory.problems or p.name in reader]
    if inventory.problems:
        scales = {p.scale_name for p in wanted}
        return [text for text in state_problems(wanted, reader, skip_mtp=True) if not _blames(text, scales)]
    return state_problems(wanted, reader, skip_mtp=not config.predicts)


def _blames(text: str, scales: set[str]) -> bool:
    """Whether a problem is only the other half of a weight and scale that lie in a broken file."""
    return " has no '" in text or ("unknown tensor" in text and text.rsplit("'", 2)[1].endswith(".scale"))


def _values_of_a_load(config: ModelConfig, reader: CheckpointReader) -> list[str]:
    whole, problems = is_small(reader), []
    for parameter in parameters(config):
        for name in read_at_load(parameter, reader, whole=whole):
            problem = value_problem(reader, name)
            if problem:
                problems.append(problem)
    return problems


def _config_notes(path: Path, config: ModelConfig, layout: Layout) -> list[str]:
    """Notes where the config disagrees with the files: loading follows the files, other programs follow the config."""
    file = path / "config.json"
    notes: list[str] = []
    if config.quantized != (layout.linears == "fp8"):
        says = "has" if config.quantized else "has no"
        notes.append(f"{file}: {says} quantization_config, the linears are stored in {layout.linears}")
    if config.quantized and config.expert_dtype not in (None, layout.experts):
        notes.append(f"{file}: expert_dtype is {config.expert_dtype}, the experts are stored in {layout.experts}")
    return notes


def _layout_notes(config: ModelConfig, reader: CheckpointReader, layout: Layout) -> list[str]:
    """One sentence for each kind of tensor that is stored in another form than the layout's."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for parameter in parameters(config):
        for text in _deviations(parameter, reader, stored_or_nearest(parameter, layout)):
            counts[text] += 1
            first.setdefault(text, parameter.name)
    return [f"{count} {text} (first: {first[text]!r})" for text, count in counts.items()]


def stored_or_nearest(parameter: Parameter, layout: Layout) -> Mapping[str, TensorSpec]:
    """`stored`, or the bfloat16 form where the layout cannot hold the shape."""
    try:
        return stored(parameter, layout)
    except ValueError:
        return stored(parameter, BF16)


def _deviations(parameter: Parameter, reader: CheckpointReader, wanted: Mapping[str, TensorSpec]) -> list[str]:
    name, scale = parameter.name, parameter.scale_name
    is_, should = reader.spec(name).dtype, wanted[name].dtype
    texts: list[str] = []
    if is_ != should and parameter.storage is not Storage.TABLE:
        texts.append(f"{parameter.storage.value} tensors are {_name(is_)}, the others of their kind {_name(should)}")
    elif scale in reader and scale in wanted and reader.spec(scale).dtype != wanted[scale].dtype:
        texts.append(f"scales are {reader.spec(scale).dtype}, the layout's {wanted[scale].dtype}".replace("torch.", ""))
    return texts


def _name(dtype: torch.dtype) -> str:
    return _DTYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))
