"""Experts larger than memory: read from their files while the model runs, within a budget of bytes.

An arena holds as many experts as the budget allows. Those that a layer's tokens chose are read into it, past the page
cache where the file system allows it (docs/speed.md has the rates), and the fused step reads some of the next layer's
ahead. The least used go first. Results do not depend on the budget. There is one budget per process.
"""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dsv4.kernels import native


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """What was done since `limit_experts`. layer, layers: how far the running step is; 0 of 0 between steps."""

    bytes_read: int
    taken: int  # experts that a layer used, once for each use
    missed: int  # those of them that were not in memory
    resident: int  # experts in memory now
    layer: int
    layers: int


def limit_experts(maps: Mapping[Path, Tensor], budget: int | None, largest: int = 0) -> None:
    """Let the experts of `maps` take at most `budget` bytes of memory; None ends the limit.

    maps: whole files by path, mapped privately and never written to. largest: bytes of the largest expert. Experts
    outside these maps are not affected. Waits for a layer that uses experts now. Raises ValueError where the native
    kernels do not run and for a budget that does not hold two experts, MemoryError, and OSError for a file that cannot
    be read; then there is no limit.
    """
    if not native.available():
        if budget is None:
            return
        raise ValueError(f"experts can be read from disk by the native kernels only: {native.why_not()}")
    start = native.function("dsv4_residency_start", [ctypes.c_int64] * 2, ctypes.c_int64)
    if budget is None:
        start(0, 0)
        return
    places = start(max(0, budget), largest)
    if places < 0:
        raise MemoryError(f"the system gives no {budget:,} bytes for experts")
    if places < 2:
        raise ValueError(f"the budget of experts must hold two of {largest:,} bytes, got {budget:,}")
    add = native.function("dsv4_residency_file", [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64], ctypes.c_int)
    for path, data in maps.items():
        code = add(os.fsencode(path), data.data_ptr(), data.numel() * data.element_size())
        if code:
            start(0, 0)
            raise OSError(code, os.strerror(code), str(path))


def expert_counts() -> ExpertCounts:
    """What has been read so far; zeros without a limit."""
    numbers = (ctypes.c_int64 * 6)()
    if native.available():
        native.function("dsv4_residency_counts", [ctypes.c_void_p])(numbers)
    return ExpertCounts(*numbers)


def unread() -> OSError:
    """The error of a step that needed an expert which could not be read."""
    text = ctypes.create_string_buffer(200)
    native.function("dsv4_residency_problem", [ctypes.c_char_p, ctypes.c_int64])(text, len(text))
    return OSError(f"an expert could not be read from the checkpoint's files: {text.value.decode(errors='replace')}")
