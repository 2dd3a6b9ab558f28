"""Convert a folder from one layout to another, one tensor at a time; an interrupted run continues where it
stopped.

Lossless: FP4 to FP8 experts, scales between e8m0 and float32 powers of two, the released forms to bf16 or fp32. The
other directions quantise. Weights in the forms of other quantisers (see `requantized`) and GGUF files (see `gguf`) are
read here and only here.
While it runs, and after an interruption, the target holds a marker file that the reader refuses.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dsv4.checkpoint.adapter import Adapter, read_adapter
from dsv4.checkpoint.check import detect_layout
from dsv4.checkpoint.folder import open_folder
from dsv4.checkpoint.format import CheckpointError, read_json
from dsv4.checkpoint.gguf.source import is_gguf, open_gguf
from dsv4.checkpoint.inventory import INDEX_NAME, PICKLE_SUFFIXES, UNFINISHED_NAME
from dsv4.checkpoint.loader import is_quantized, state_problems, table_problems
from dsv4.checkpoint.names import (
    BASE,
    BF16,
    BF16_FP4,
    FP32,
    FP32_FP4,
    RELEASE,
    RELEASE_FP8,
    W4A16,
    Layout,
    expected_tensors,
    shard_of,
    stored,
)
from dsv4.checkpoint.quantize import store_parameter, stored_values, write_configs
from dsv4.checkpoint.reader import CheckpointReader, raise_problems
from dsv4.checkpoint.rounding import Rounding
from dsv4.checkpoint.shapes import check_shapes
from dsv4.checkpoint.values import ByteProgress, bad_value
from dsv4.checkpoint.writer import CheckpointWriter, shards_by_size, write_json
from dsv4.files import stamp
from dsv4.kernels.quant import dequantize_weight, float_to_e8m0, fp4_to_fp8_weight, powers_of_two
from dsv4.parameters import Parameter, Storage, parameters

_NOT_COPIED = PICKLE_SUFFIXES | {".safetensors", ".gguf", ".tmp"}
# Written anew, or what a quantiser says of the weights it stored: other programs would believe it.
_NOT_OURS = frozenset(
    {
        "config.json",
        INDEX_NAME,
        UNFINISHED_NAME,
        "hf_quant_config.json",
        "quantization_config.json",
        "quantize_config.json",
        "quant_config.json",
        "recipe.yaml",
    }
)


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    experts: str | None = None,
    dtype: str = "release",
    adapter: str | Path | None = None,
    resume: bool = True,
    requantize: bool = False,
    progress: ByteProgress | None = None,
    report: Callable[[str], None] | None = None,
    max_shard_bytes: int | None = None,
) -> Layout:
    """Write the checkpoint `src` (a folder, or a GGUF file) in another layout into the folder `dst`; returns that
    layout.

    dtype     release (FP8, e8m0 scales), base (FP8, float32 scales), bf16 or fp32 (no scales)
    experts   fp4 or fp8 with release, fp4 also with bf16 and fp32, w4a16 (4-bit integers) with bf16; by default as in
              the source (release: fp4 for all 4-bit forms and for floats)
    adapter   folder of a LoRA adapter: its changes are added in float32, then the weights are stored (quantised anew)
    resume    continue an interrupted conversion of the same source; False starts it anew
    requantize  round FP4 experts that FP8 cannot hold exactly (see `fp4_to_fp8_weight`); False refuses them
    progress  called after each parameter with (bytes done, bytes in all, name)
    report    called at the end with sentences: what was left out, and what rounding changed in weights that another
              quantiser stored (in this run)

    Other small files of `src` (tokenizer, licence) are copied. Raises CheckpointError when the source is not complete,
    the target belongs to something else, or a step that must be lossless is not; ValueError for a combination of dtype
    and experts that no layout has.
    """
    source, target = Path(src), Path(dst)
    if source.resolve() == target.resolve():
        raise ValueError(f"dst must be another folder than src, got {target} for both")
    gguf = open_gguf(source) if is_gguf(source) else None
    folder = open_folder(source) if gguf is None else gguf.folder
    config, reader = folder.config, folder.reader
    layout = target_layout(detect_layout(reader, config), dtype, experts)
    wanted = list(parameters(config))
    raise_problems(state_problems(wanted, reader, skip_mtp=not config.predicts, convertible=True))
    raise_problems(table_problems(config, reader))
    check_shapes(config, layout=layout)
    plan = expected_tensors(config, layout)
    shard = shards_by_size(plan, max_shard_bytes) if max_shard_bytes else lambda name: shard_of(name, config)
    merged = None if adapter is None else read_adapter(adapter, config)
    same = _fingerprint(reader, layout, max_shard_bytes) | ({} if merged is None else {"adapter": merged.digest})
    _claim(target, same, resume)
    with CheckpointWriter(target, plan, shard, keep_finished=True) as writer:
        rounding = _convert_all(wanted, reader, layout, merged, writer, progress, requantize)
        if gguf is None:
            _copy_small_files(source, target)
        else:
            gguf.write_small_files(target)
        write_configs(target, config, layout)
    (target / UNFINISHED_NAME).unlink()
    if report is not None:
        for sentence in (*folder.notes, *rounding.sentences()):
            report(sentence)
    return layout


def target_layout(source: Layout, dtype: str, experts: str | None) -> Layout:
    """The layout meant by the two options. Raises ValueError when there is none."""
    if dtype == "release" and experts in (None, "fp4", "fp8"):
        kept = source.experts if source.experts in ("fp4", "fp8") else "fp4"
        return RELEASE if (experts or kept) == "fp4" else RELEASE_FP8
    if dtype == "base" and experts in (None, "fp8"):
        return BASE
    if dtype == "bf16" and experts in (None, "bf16", "fp4", "w4a16"):
        return {"fp4": BF16_FP4, "w4a16": W4A16}.get(experts or "", BF16)
    if dtype == "fp32" and experts in (None, "fp4"):
        return FP32_FP4 if experts == "fp4" else FP32
    raise ValueError(
        f"no layout has dtype {dtype!r} with experts {experts!r}: "
        "release takes fp4 or fp8, base fp8, bf16 bf16, fp4 or w4a16, fp32 fp4 or none; "
        "q8_0 and f16 are for a target that ends in .gguf"
    )


def convert_parameter(
    parameter: Parameter,
    reader: CheckpointReader,
    layout: Layout,
    rounding: Rounding | None = None,
    *,
    requantize: bool = False,
) -> dict[str, Tensor]:
    """One parameter's tensors in another layout; copied bit for bit where the layouts agree on it. rounding: counts a
    weight that is quantised anew. requantize: as in `convert`."""
    wanted = stored(parameter, layout)
    if parameter.name in reader.packed:
        quantised = parameter.scale_name in wanted
        if quantised and (codes := reader.released(parameter.name, parameter.shape)) is not None:
            return _from_codes(parameter, *codes, reader, layout, rounding, requantize)
        values = reader.unpacked(parameter.name, parameter.shape)
        return _stored_anew(parameter, reader.packed[parameter.name].method.name, values, reader, layout, rounding)
    if parameter.name not in wanted:
        had = {torch.int8: "FP4", torch.float8_e4m3fn: "FP8"}.get(reader.spec(parameter.name).dtype, "floats")
        values = reader.dequantized(parameter.name)
        return _stored_anew(parameter, f"{had}, now W4A16", values, reader, layout, rounding)
    if all(name in reader and reader.spec(name) == spec for name, spec in wanted.items()):
        return {name: reader.tensor(name) for name in wanted}
    name, scale_name = parameter.name, parameter.scale_name
    dtype, source = wanted[name].dtype, reader.spec(name).dtype
    if parameter.storage is Storage.TABLE:
        return {name: reader.tensor(name).to(dtype)}
    if source == torch.float16:
        return _stored_anew(parameter, "F16", reader.dequantized(name), reader, layout, rounding)
    if len(wanted) == 1:
        return {name: reader.dequantized(name, dtype)}
    if not is_quantized(reader.spec(name)):
        return _store(parameter, reader.tensor(name), reader, layout)
    if dtype == torch.int8:
        return _store(parameter, reader.dequantized(name, torch.bfloat16), reader, layout)
    weight, scale = reader.tensor(name), reader.tensor(scale_name)
    return _from_codes(parameter, weight, scale, reader, layout, rounding, requantize)


def _from_codes(
    parameter: Parameter,
    weight: Tensor,
    scale: Tensor,
    reader: CheckpointReader,
    layout: Layout,
    rounding: Rounding | None,
    requantize: bool,
) -> dict[str, Tensor]:
    """A parameter of a quantised layout from FP4 or FP8 codes and their scales."""
    name, scale_name, wanted = parameter.name, parameter.scale_name, stored(parameter, layout)
    if wanted[name].dtype == torch.int8:
        if found := bad_value(scale):
            raise CheckpointError(f"{reader.file_of(name)}: tensor {name!r}: its scales: {found}")
        return {name: weight, scale_name: scale}
    if weight.dtype == torch.int8:
        try:
            weight, scale = fp4_to_fp8_weight(weight, scale)
        except ValueError as error:
            if not requantize:
                text = f"tensor {name!r}: {error}; --requantize rounds such weights"
                raise CheckpointError(f"{reader.file_of(name)}: {text}") from None
            form = "FP4 that FP8 cannot hold exactly"
            return _stored_anew(parameter, form, dequantize_weight(weight, scale), reader, layout, rounding)
    try:
        if wanted[scale_name].dtype == torch.float32:
            scale = scale.to(torch.float32)
        elif scale.dtype != wanted[scale_name].dtype:
            if not powers_of_two(scale):
                form = "FP8 with scales that are no powers of two"
                return _stored_anew(parameter, form, dequantize_weight(weight, scale), reader, layout, rounding)
            scale = float_to_e8m0(scale)
    except ValueError as error:
        raise CheckpointError(f"{reader.file_of(name)}: tensor {name!r}: {error}") from None
    return {name: weight, scale_name: scale}


def _stored_anew(
    parameter: Parameter,
    form: str,
    values: Tensor,
    reader: CheckpointReader,
    layout: Layout,
    rounding: Rounding | None,
) -> dict[str, Tensor]:
    if found := bad_value(values):
        raise CheckpointError(f"{reader.file_of(parameter.name)}: tensor {parameter.name!r} {found}")
    tensors = _store(parameter, values, reader, layout)
    if rounding is not None:
        rounding.add(form, values, stored_values(parameter, tensors))
    return tensors


def _store(parameter: Parameter, values: Tensor, reader: CheckpointReader, layout: Layout) -> dict[str, Tensor]:
    """`store_parameter`, whose errors name the file that the values come from."""
    try:
        return store_parameter(parameter, values, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{reader.file_of(parameter.name)}: {error}") from None


def _convert_all(
    wanted: list[Parameter],
    reader: CheckpointReader,
    layout: Layout,
    adapter: Adapter | None,
    writer: CheckpointWriter,
    progress: ByteProgress | None,
    requantize: bool,
) -> Rounding:
    finished = writer.finished
    sizes = [sum(spec.nbytes for spec in stored(parameter, layout).values()) for parameter in wanted]
    total, done, rounding = sum(sizes), 0, Rounding()
    for parameter, size in zip(wanted, sizes, strict=True):
        if not finished.issuperset(stored(parameter, layout)):
            if adapter is not None and parameter.name.removesuffix(".weight") in adapter.factors:
                value = reader.values(parameter.name, parameter.shape)
                tensors = _store(parameter, adapter.merged(parameter, value), reader, layout)
            else:
                tensors = convert_parameter(parameter, reader, layout, rounding, requantize=requantize)
            for name, tensor in tensors.items():
                if name not in finished:
                    writer.write(name, tensor)
        done += size
        reader.release_after(size)
        if progress:
            progress(done, total, parameter.name)
    return rounding


def _fingerprint(reader: CheckpointReader, layout: Layout, max_shard_bytes: int | None) -> dict[str, str]:
    """The facts that must be equal for two runs to be one conversion."""
    digest = hashlib.sha256()
    for file in sorted({reader.file_of(name) for name in (*reader.names(), *reader.packed)}):
        digest.update("{} {} {}\n".format(file.name, *stamp(file)).encode())
    for name in reader.names():
        digest.update(f"{name!r} {reader.spec(name)}\n".encode())
    for name, packed in reader.packed.items():
        digest.update(f"{name!r} {packed.method.name}\n".encode())
    return {
        "source": str(reader.folder.resolve()),
        "content": digest.hexdigest(),
        "layout": layout.name,
        "shards": json.dumps(max_shard_bytes),
    }


def _claim(target: Path, fingerprint: dict[str, str], resume: bool) -> None:
    """Claim the target: a new folder, or one of an earlier run of the same conversion."""
    marker = target / UNFINISHED_NAME
    if marker.is_file():
        if resume and read_json(marker) != fingerprint:
            raise CheckpointError(
                f"{marker}: the unfinished conversion here is of another source or layout; "
                "pass --no-resume to discard it"
            )
        # Only complete shards are worth keeping; an index may be left from a stop at the very end.
        discard = [*target.glob(".model*.tmp"), target / INDEX_NAME]
        if not resume:
            discard += target.glob("model-*-of-*.safetensors")
        for file in discard:
            file.unlink(missing_ok=True)
    elif target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: is not an empty folder; choose a new one")
    target.mkdir(parents=True, exist_ok=True)
    write_json(marker, fingerprint)


def _copy_small_files(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        own = file.name in _NOT_OURS or file.name.startswith((".", "adapter_"))
        if file.is_file() and not own and file.suffix not in _NOT_COPIED:
            shutil.copyfile(file, target / file.name)
