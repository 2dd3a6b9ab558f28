"""Experts larger than memory: used in place from the map of their file, within a budget of bytes.

Before a layer runs, the experts its tokens chose are asked of the disk together; the least recently used ones are let
go. Results do not depend on it. One budget per process.
"""

import ctypes
from collections.abc import Sequence

from torch import Tensor

from dsv4.kernels import native


def limit_experts(maps: Sequence[Tensor], budget: int | None) -> None:
    """Let the experts of `maps` take at most `budget` bytes of memory; None ends the limit.

    maps: whole files, mapped privately and never written to. Experts elsewhere are left alone. Raises ValueError where
    the native kernels do not run, and for a budget under 1 byte.
    """
    if budget is not None and budget < 1:
        raise ValueError(f"the budget of experts must be at least 1 byte, got {budget}")
    if not native.available():
        if budget is None:
            return
        raise ValueError(f"experts can be read from disk by the native kernels only: {native.why_not()}")
    native.function("dsv4_residency_budget", [ctypes.c_int64])(budget or 0)
    add = native.function("dsv4_residency_map", [ctypes.c_void_p, ctypes.c_int64])
    for data in maps if budget is not None else ():
        add(data.data_ptr(), data.numel() * data.element_size())
