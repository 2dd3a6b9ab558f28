"""Numbers that no weight may have: NaN, infinity, and the codes of FP8 and e8m0 that stand for NaN.

With one of them every answer of a model is the same token, which depends on the mode. Loading checks the values that it
reads anyway; `dsv4 check --deep` reads everything.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dsv4.checkpoint.reader import CheckpointReader
from dsv4.parameters import Parameter, Storage

CHUNK_BYTES = 1 << 24
# Folders up to this size are looked at whole when they are loaded: less than a second.
WHOLE_BYTES = 1 << 28
# Small wherever they are, and each one of them reaches every answer.
ALWAYS = frozenset({Storage.NORM, Storage.FLOAT})

ByteProgress = Callable[[int, int, str], None]  # bytes done, bytes in all, name


def bad_value(tensor: Tensor) -> str | None:
    """The kind and place of the first value that is not finite; None if there is none. Reads in chunks of limited
    size."""
    if tensor.dtype == torch.float8_e8m0fnu:
        codes, is_bad, what = tensor.view(torch.uint8), _is_ff, "NaN (e8m0 code 255)"
    elif tensor.dtype == torch.float8_e4m3fn:
        codes, is_bad, what = tensor.view(torch.uint8), _is_7f, "NaN (e4m3 code 0x7f or 0xff)"
    elif tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1:
        codes, is_bad, what = tensor, _is_not_finite, "NaN or infinity"
    else:
        return None
    if not codes.numel() or (codes.numel() * codes.element_size() <= CHUNK_BYTES and is_bad(codes) is None):
        return None
    flat = codes.reshape(-1)
    step = CHUNK_BYTES // flat.element_size()
    for start in range(0, flat.numel(), step):
        bad = is_bad(flat[start : start + step])
        if bad is not None:
            first = start + int(bad.nonzero()[0])
            place = [int(i) for i in torch.unravel_index(torch.tensor(first), tensor.shape)] if tensor.dim() else []
            return f"holds {what} at {place}"
    return None


def _is_ff(codes: Tensor) -> Tensor | None:
    return codes == 255 if int(codes.max()) == 255 else None


def _is_7f(codes: Tensor) -> Tensor | None:
    low = codes & 0x7F
    return low == 0x7F if int(low.max()) == 0x7F else None


def _is_not_finite(values: Tensor) -> Tensor | None:
    low, high = values.aminmax()  # both are NaN where one value is
    return None if bool(low.isfinite()) and bool(high.isfinite()) else ~values.isfinite()


def value_problem(reader: CheckpointReader, name: str) -> str | None:
    """`bad_value` of a stored tensor as a sentence with its file; None if there is none."""
    dtype = reader.spec(name).dtype
    if not dtype.is_floating_point:  # every code of the others is a number
        return None
    found = bad_value(reader.tensor(name))
    return f"{reader.file_of(name)}: tensor {name!r} {found}" if found else None


def read_at_load(parameter: Parameter, reader: CheckpointReader, *, whole: bool) -> Iterator[str]:
    """Names of a parameter's tensors that loading checks in every mode; `whole`: the folder is small."""
    quantised = parameter.scale_name in reader and parameter.scale_name != parameter.name
    if whole or parameter.storage in ALWAYS:
        yield parameter.name
    if quantised and (whole or parameter.storage is Storage.LINEAR):
        yield parameter.scale_name


def is_small(reader: CheckpointReader) -> bool:
    """Whether loading checks all values."""
    return reader.nbytes <= WHOLE_BYTES


def every_value(reader: CheckpointReader, progress: ByteProgress | None = None) -> Iterator[str]:
    """A sentence for every tensor of a folder with a value that is not finite. Reads the whole folder, a few MiB at a
    time."""
    names = reader.names()
    total, done = sum(reader.spec(name).nbytes for name in names), 0
    for name in names:
        problem = value_problem(reader, name)
        if problem:
            yield problem
        done += reader.spec(name).nbytes
        reader.release_after(reader.spec(name).nbytes)
        if progress:
            progress(done, total, name)
