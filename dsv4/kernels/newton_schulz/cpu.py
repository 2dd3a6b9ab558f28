"""Newton-Schulz by the native kernel: a matrix a thread, everything symmetric computed once.

N matrices, n rows, m columns.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.newton_schulz.reference import TINY


@cache
def _function() -> Callable[..., None]:
    arguments = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 4 + [ctypes.c_float, ctypes.c_int]
    return native.function("dsv4_newton_schulz", arguments)


def usable(x_Nnm: Tensor, dtype: torch.dtype) -> bool:
    """Whether the native kernel takes these and is the faster way: float32 products on the CPU, and a matrix for every
    thread, because threads do not share one."""
    enough = x_Nnm.shape[0] >= torch.get_num_threads()
    return dtype == torch.float32 and x_Nnm.dtype == torch.float32 and enough and native.usable(x_Nnm)


def orthogonalize(x_Nnm: Tensor, steps: Sequence[tuple[float, float, float]], dtype: torch.dtype) -> Tensor:
    """See dsv4.kernels.newton_schulz.orthogonalize."""
    o_Nnm = x_Nnm.clone(memory_format=torch.contiguous_format)
    table = (ctypes.c_float * (3 * len(steps)))(*(number for step in steps for number in step))
    _function()(o_Nnm.data_ptr(), table, len(steps), *o_Nnm.shape, TINY, torch.get_num_threads())
    return o_Nnm
