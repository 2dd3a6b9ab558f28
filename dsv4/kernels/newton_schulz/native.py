"""Newton-Schulz by the native kernels: one matrix per thread; symmetric products are computed once.

Legend: N matrices of one shape, n rows, m columns.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.newton_schulz.reference import TINY

DTYPES = torch.float32, torch.int16  # of products


@cache
def _function() -> Callable[..., None]:
    arguments = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 4 + [ctypes.c_float, ctypes.c_int, ctypes.c_int]
    return native.function("dsv4_newton_schulz", arguments)


def takes(x_Nnm: Tensor, steps: Sequence[tuple[float, float, float]], dtype: torch.dtype) -> str | None:
    """Why the native kernels do not take these, or are not the faster way; None if they do and are."""
    if dtype not in DTYPES:
        return f"products are to compute in {dtype}, not {' or '.join(map(str, DTYPES))}"
    if dtype == torch.float32 and x_Nnm.shape[0] < torch.get_num_threads():
        return f"threads do not share a matrix, and there are {x_Nnm.shape[0]} for {torch.get_num_threads()} threads"
    return native.needs(x_Nnm, (torch.float32,), "x")


def orthogonalize(x_Nnm: Tensor, steps: Sequence[tuple[float, float, float]], dtype: torch.dtype) -> Tensor:
    """See dsv4.kernels.newton_schulz.orthogonalize."""
    o_Nnm = x_Nnm.clone(memory_format=torch.contiguous_format)
    table = (ctypes.c_float * (3 * len(steps)))(*(number for step in steps for number in step))
    int16, threads = dtype == torch.int16, torch.get_num_threads()
    _function()(o_Nnm.data_ptr(), table, len(steps), *o_Nnm.shape, TINY, int16, threads)
    return o_Nnm
