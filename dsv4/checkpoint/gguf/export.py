"""Write a folder as one GGUF file, one tensor at a time.

Every parameter of the backbone goes into the file; the prediction block and draft stages do not (llama.cpp reads them
from a file of their own). Norms and the parts that compute in float32 are F32, hash tables I32. The type of the other
matrices is chosen:

type     linears    other matrices (embedding, router, compressor, head)
q8_0     Q8_0       BF16
f16      F16        F16
bf16     BF16       BF16
fp32     F32        F32

Routed experts are MXFP4 where the folder has FP4, or of a type of their own choice.

MXFP4 of FP4 experts keeps every bit; F32 keeps every value, BF16 those of all released layouts, F16 those within its
range. What rounding changed is reported, and what F16 cannot hold at all is an error.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from dsv4.checkpoint.check import detect_layout
from dsv4.checkpoint.folder import ModelFolder, open_folder
from dsv4.checkpoint.format import CheckpointError
from dsv4.checkpoint.gguf.blocks import mxfp4_blocks, q8_0_blocks, q8_0_values
from dsv4.checkpoint.gguf.container import MetadataValue, Scalars, encode_gguf_header
from dsv4.checkpoint.gguf.metadata import ARCHITECTURE, metadata_of
from dsv4.checkpoint.gguf.names import gguf_place
from dsv4.checkpoint.gguf.types import BF16, F16, F32, I32, MXFP4, Q8_0, GgmlType
from dsv4.checkpoint.gguf.vocabulary import vocabulary_keys
from dsv4.checkpoint.loader import state_problems, table_problems
from dsv4.checkpoint.reader import CheckpointReader, raise_problems
from dsv4.checkpoint.rounding import Rounding
from dsv4.checkpoint.tokenizer_file import read_tokenizer_file, size_notes
from dsv4.checkpoint.values import ByteProgress, bad_value
from dsv4.files import write_whole
from dsv4.kernels.quant import dequantize_weight, quantize_fp4_weight
from dsv4.parameters import Parameter, Storage, parameters

LINEAR_TYPES: dict[str, GgmlType] = {"q8_0": Q8_0, "f16": F16, "bf16": BF16, "fp32": F32}
EXPERT_TYPES: dict[str, GgmlType] = {"fp4": MXFP4, **LINEAR_TYPES}
# general.file_type of llama.cpp: what most of the file is
_FILE_TYPES = {F32: 0, F16: 1, Q8_0: 7, BF16: 32, MXFP4: 38}
_QUANTISATION_VERSION = 2
_VOCABULARY_KIND = "tokenizer.ggml.model"


def export_gguf(
    src: str | Path,
    dst: str | Path,
    *,
    dtype: str = "q8_0",
    experts: str | None = None,
    progress: ByteProgress | None = None,
    report: Callable[[str], None] | None = None,
) -> str:
    """Write the checkpoint folder `src` as the GGUF file `dst`; returns the types in it ("Q8_0, experts MXFP4").

    dtype     type of linears and other matrices, see above
    experts   type of routed experts; by default fp4 (MXFP4) where they are FP4 in `src`, else as `dtype`
    progress  called after each tensor with (bytes done, bytes in all, name)
    report    called at the end with sentences: what was left out, what rounding changed

    The file is whole or not there. Raises CheckpointError when the source is not complete, the target exists, or a
    value does not fit its type or is not finite; ValueError for unknown types and a broken tokenizer.json.
    """
    for name, value, allowed in (("dtype", dtype, LINEAR_TYPES), ("experts", experts, EXPERT_TYPES)):
        if value is not None and value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)} for a GGUF file, got {value!r}")
    target = Path(dst)
    if target.exists():
        raise CheckpointError(f"{target}: exists already; choose a new file")
    folder = open_folder(src)
    config, reader = folder.config, folder.reader
    wanted = [parameter for parameter in parameters(config) if not parameter.prediction]
    raise_problems(state_problems(wanted, reader, skip_mtp=True, convertible=True))
    raise_problems(table_problems(config, reader))
    if experts is None:
        experts = "fp4" if detect_layout(reader, config).experts == "fp4" else dtype
    plan = plan_tensors(wanted, dtype, experts)
    vocabulary = _vocabulary(folder)
    metadata = _general_keys(folder, plan) | metadata_of(config) | (vocabulary or {_VOCABULARY_KIND: "no_vocab"})
    rounding = Rounding()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda out: _write(out, metadata, plan, reader, rounding, progress))
    if report is not None:
        left = ["the prediction block (mtp.*) is left out: GGUF readers have it in another file"]
        mute = ["no tokenizer.json: llama.cpp and flyweight load the file and fail at the first text"]
        notes = (*folder.notes, *(left if config.predicts else ()), *(() if vocabulary else mute))
        for sentence in (*notes, *rounding.sentences()):
            report(sentence)
    return f"{LINEAR_TYPES[dtype].name}, experts {EXPERT_TYPES[experts].name}"


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to be written: its type, its shape, and the parameters whose values it holds one after another."""

    type: GgmlType
    shape: tuple[int, ...]
    parameters: tuple[Parameter, ...]


def plan_tensors(wanted: list[Parameter], dtype: str, experts: str) -> dict[str, PlannedTensor]:
    """The tensors of a file by name, in the order in which a layer computes. Raises CheckpointError for a shape that a
    type cannot hold."""
    parts: dict[str, list[Parameter]] = {}
    for parameter in wanted:
        parts.setdefault(gguf_place(parameter.name).tensor, []).append(parameter)
    plan = {}
    for name, members in parts.items():
        first = members[0]
        kind = _type_of(first, dtype, experts)
        if first.shape[-1] % kind.values:
            text = f"packs {kind.values} columns, the matrix has {first.shape[-1]}"
            raise CheckpointError(f"tensor {first.name!r}: {kind.name} {text}: choose another type for it")
        shape = (len(members), *first.shape) if first.storage is Storage.EXPERT else first.shape
        plan[name] = PlannedTensor(kind, shape, tuple(members))
    return plan


def _type_of(parameter: Parameter, dtype: str, experts: str) -> GgmlType:
    storage = parameter.storage
    if storage is Storage.TABLE:
        return I32
    if storage in (Storage.NORM, Storage.FLOAT):
        return F32
    if storage is Storage.EXPERT:
        return EXPERT_TYPES[experts]
    if storage is Storage.LINEAR:
        return LINEAR_TYPES[dtype]
    return BF16 if dtype == "q8_0" else LINEAR_TYPES[dtype]


def _general_keys(folder: ModelFolder, plan: dict[str, PlannedTensor]) -> dict[str, MetadataValue]:
    sizes: dict[GgmlType, int] = {}
    for tensor in plan.values():
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.type.bytes_of(tensor.shape)
    most = max((kind for kind in sizes if kind in _FILE_TYPES), key=sizes.__getitem__)
    return {
        "general.architecture": ARCHITECTURE,
        "general.name": folder.reader.folder.resolve().name,
        "general.file_type": Scalars("I", [_FILE_TYPES[most]], array=False),
        "general.quantization_version": Scalars("I", [_QUANTISATION_VERSION], array=False),
    }


def _vocabulary(folder: ModelFolder) -> dict[str, MetadataValue] | None:
    """The keys of its tokenizer; None if it has none."""
    config, path = folder.config, folder.reader.folder
    definition = read_tokenizer_file(path)
    if definition is None:
        return None
    size_notes(path, definition, config.vocab_size)  # raises for ids that are none, or that the model lacks
    return vocabulary_keys(path, definition, config.vocab_size, config.bos_token_id, config.eos_token_id)


def _write(
    out: BinaryIO,
    metadata: dict[str, MetadataValue],
    plan: dict[str, PlannedTensor],
    reader: CheckpointReader,
    rounding: Rounding,
    progress: ByteProgress | None,
) -> None:
    header, offsets = encode_gguf_header(metadata, {name: (t.type, t.shape) for name, t in plan.items()})
    out.write(header)
    position = len(header)
    total = sum(t.type.bytes_of(t.shape) for t in plan.values())
    for name, planned in plan.items():
        out.write(b"\0" * (offsets[name] - position))
        position = offsets[name]
        for data in _data_of(planned, reader, rounding):
            out.write(data.contiguous().view(torch.uint8).reshape(-1).numpy().data)
            position += data.nbytes
            reader.release_after(data.nbytes)
        if progress:
            progress(min(position - len(header), total), total, name)


def _data_of(planned: PlannedTensor, reader: CheckpointReader, rounding: Rounding) -> Iterator[Tensor]:
    """The bytes of a tensor, one parameter at a time."""
    for parameter in planned.parameters:
        try:
            yield _encoded(parameter, planned.type, reader, rounding)
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{reader.file_of(parameter.name)}: tensor {parameter.name!r}: {error}") from None


def _encoded(parameter: Parameter, kind: GgmlType, reader: CheckpointReader, rounding: Rounding) -> Tensor:
    """One parameter in a type. Raises ValueError for values that it cannot hold."""
    name = parameter.name
    if kind is I32:
        return reader.tensor(name).to(torch.int32)
    if kind is MXFP4 and name in reader and reader.spec(name).dtype == torch.int8:
        scale = reader.tensor(parameter.scale_name)
        _refuse_bad(scale)
        return mxfp4_blocks(reader.tensor(name), scale)
    values = reader.values(name, parameter.shape)
    _refuse_bad(values)
    if kind is F32:
        return values
    if kind is MXFP4:
        packed, scale = quantize_fp4_weight(values)
        data = mxfp4_blocks(packed, scale)
        after = dequantize_weight(packed, scale)
    elif kind is Q8_0:
        data = q8_0_blocks(values)
        after = q8_0_values(data)
    else:
        data = values.to(kind.dtype)
        after = data.to(torch.float32)
        if not bool(after.isfinite().all()):
            raise ValueError(f"holds {float(values.abs().max()):g}, which {kind.name} cannot: choose another type")
    rounding.add(kind.name, values, after)
    return data


def _refuse_bad(tensor: Tensor) -> None:
    found = bad_value(tensor)
    if found:
        raise ValueError(found)
