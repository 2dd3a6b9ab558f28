"""Experts larger than memory: read from their files while the model runs, within a budget of bytes.

An arena holds as many experts as the budget allows. Those that a layer's tokens chose are read into it, past the page
cache where the file system allows it (docs/speed.md has the rates), and the fused step reads some of the next layer's
ahead. The least used go first. Results do not depend on the budget. Every model has a budget of its own: native code
finds it by the address of an expert.
"""

import ctypes
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dsv4.kernels import native


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """What was done since a budget was made. layer, layers: how far the running step is; 0 of 0 between steps.

    missed and foreseen experts were read for a layer; the others of `taken` were in memory. reading: nanoseconds in
    which a read was running. waiting: nanoseconds in which a layer had nothing to compute before a read ended.
    """

    bytes_read: int
    taken: int  # experts that a layer used, once for each use
    missed: int  # those of them whose reading began when the layer asked for them
    resident: int  # experts in memory now
    layer: int
    layers: int
    foreseen: int = 0  # experts that were used for the first time since they were read ahead
    reading: int = 0
    waiting: int = 0


class ExpertBudget:
    """Lets the experts of some files take a bounded part of memory, until it is closed."""

    def __init__(self, maps: Mapping[Path, Tensor], budget: int, largest: int) -> None:
        """maps: whole files by path, mapped privately and never written to; they are kept until the budget is closed.
        budget: bytes. largest: bytes of the largest expert. Experts outside these maps are not affected.

        Raises ValueError where the native kernels do not run, for a budget that does not hold two experts, and for maps
        that have a budget already; MemoryError; and OSError for a file that cannot be read.
        """
        if not native.available():
            raise ValueError(f"experts can be read from disk by the native kernels only: {native.why_not()}")
        places = ctypes.c_int64()
        start = native.function("dsv4_residency_open", [ctypes.c_int64] * 2 + [ctypes.c_void_p], ctypes.c_int64)
        self._handle: int = start(max(0, budget), largest, ctypes.byref(places))
        if self._handle < 0:
            raise MemoryError(f"the system gives no {budget:,} bytes for experts")
        if not self._handle:
            raise ValueError(f"the budget of experts must hold two of {largest:,} bytes, got {budget:,}")
        self._maps = dict(maps)
        try:
            self._add_files()
        except (OSError, ValueError):
            self.close()
            raise

    def _add_files(self) -> None:
        arguments = [ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64]
        add = native.function("dsv4_residency_file", arguments, ctypes.c_int)
        for path, data in self._maps.items():
            code = add(self._handle, os.fsencode(path), data.data_ptr(), data.numel() * data.element_size())
            if code == errno.EEXIST:
                raise ValueError(f"{path}: the experts of this map have a budget already")
            if code:
                raise OSError(code, os.strerror(code), str(path))

    def counts(self) -> ExpertCounts:
        """What has been read so far; zeros when it is closed."""
        return _counts(self._handle) if self._handle else ExpertCounts(0, 0, 0, 0, 0, 0)

    def close(self) -> None:
        """End the limit: experts are used where they lie. Waits for a layer that uses experts now."""
        handle, self._handle = self._handle, 0
        if handle:
            native.function("dsv4_residency_close", [ctypes.c_int64])(handle)
        self._maps = {}


def expert_counts() -> ExpertCounts:
    """What the budgets of all models have read together; zeros without one."""
    return _counts(0) if native.available() else ExpertCounts(0, 0, 0, 0, 0, 0)


def _counts(handle: int) -> ExpertCounts:
    numbers = (ctypes.c_int64 * 9)()
    native.function("dsv4_residency_counts", [ctypes.c_int64, ctypes.c_void_p])(handle, numbers)
    return ExpertCounts(*numbers)


def unread() -> OSError:
    """The error of a step that needed an expert which could not be read."""
    text = ctypes.create_string_buffer(200)
    native.function("dsv4_residency_problem", [ctypes.c_char_p, ctypes.c_int64])(text, len(text))
    return OSError(f"an expert could not be read from the checkpoint's files: {text.value.decode(errors='replace')}")
