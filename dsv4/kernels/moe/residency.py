"""Experts larger than memory: used in place from the map of their file, within a budget of bytes.

Before a layer runs, the experts that its tokens chose are read from the disk together, and the least recently used
experts are released. Results do not depend on the budget. There is one budget per process.
"""

import ctypes
from collections.abc import Sequence

from torch import Tensor

from dsv4.kernels import native


def limit_experts(maps: Sequence[Tensor], budget: int | None) -> None:
    """Let the experts of `maps` take at most `budget` bytes of memory; None ends the limit.

    maps: whole files, mapped privately and never written to. Experts outside these maps are not affected. Raises
    ValueError where the native kernels do not run, and for a budget under 1 byte.
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
