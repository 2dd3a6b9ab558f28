"""What a GGUF file is and whether `dsv4 convert` reads it, for `dsv4 check` and `dsv4 inspect`."""

from pathlib import Path

from dsv4.checkpoint.check import CheckReport
from dsv4.checkpoint.format import CheckpointError
from dsv4.checkpoint.gguf.source import GgufSource, open_gguf
from dsv4.checkpoint.loader import state_problems, table_problems
from dsv4.checkpoint.values import ByteProgress, bad_value
from dsv4.parameters import Parameter, Storage, parameters


def describe_types(source: GgufSource) -> str:
    """'GGUF (MXFP4 87%, Q8_0 9%, BF16 4%)': its types by their share of the bytes."""
    sizes = source.bytes_by_type()
    total = source.nbytes or 1
    return f"GGUF ({', '.join(f'{name} {size / total:.0%}' for name, size in sizes.items())})"


def check_gguf(path: str | Path, *, deep: bool = False, progress: ByteProgress | None = None) -> CheckReport:
    """Check a file (all parts of it) without converting it: its header, the model it describes, names, types and shapes
    of its tensors, its hash tables, its tokenizer; with `deep`, every value (progress: bytes done, bytes in all, name).
    Never raises for the file's content."""
    try:
        source = open_gguf(path)
    except (CheckpointError, OSError) as error:
        return CheckReport(str(path), None, 0, 0, 0, (str(error),))
    reader, wanted = source.folder.reader, list(parameters(source.folder.config))
    problems = state_problems(wanted, reader, skip_mtp=True, convertible=True)
    if not problems:
        problems = table_problems(source.folder.config, reader)
        problems += _bad_values(source, wanted, progress) if deep else []
    convertible = "only `dsv4 convert FILE FOLDER` reads it; FOLDER can be loaded"
    return CheckReport(
        folder=str(path),
        layout=describe_types(source),
        files=len(source.parts),
        tensors=len(source.tensors()),
        bytes=source.nbytes,
        problems=tuple(problems),
        notes=(*source.folder.notes, convertible),
    )


def _bad_values(source: GgufSource, wanted: list[Parameter], progress: ByteProgress | None) -> list[str]:
    """A sentence for each parameter that cannot be multiplied out, or has a value that is not finite."""
    reader, problems = source.folder.reader, []
    sizes = [reader.stored_bytes(parameter.name) for parameter in wanted]
    total, done = sum(sizes), 0
    for parameter, size in zip(wanted, sizes, strict=True):
        name = parameter.name
        try:
            if parameter.storage is not Storage.TABLE:
                packed = name in reader.packed
                found = bad_value(reader.unpacked(name, parameter.shape) if packed else reader.tensor(name))
                if found:
                    problems.append(f"{reader.file_of(name)}: tensor {name!r} {found}")
        except CheckpointError as error:
            problems.append(str(error))
        done += size
        reader.release_after(size)
        if progress:
            progress(done, total, name)
    return problems
