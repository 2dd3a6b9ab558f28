"""Rotary embedding as one native call.

T tokens, C entry dim, P pairs.
"""

import ctypes
import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native


@cache
def _function() -> Callable[..., None]:
    return native.function("dsv4_rope", [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 4 + [ctypes.c_int] * 3)


def usable(x: Tensor, rotation_2TP: Tensor) -> bool:
    """Whether the native kernel takes these: float32 or bfloat16 rows, a float32 table with a row for each token."""
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and rotation_2TP.dtype == torch.float32
        and rotation_2TP.shape[1] == x.shape[0]
        and native.usable(x, rotation_2TP)
    )


def apply_rope(x: Tensor, rotation_2TP: Tensor, inverse: bool) -> Tensor:
    """See dsv4.kernels.rope.apply_rope; equal to the reference bit for bit."""
    x, rotation_2TP = x.contiguous(), rotation_2TP.contiguous()
    y = torch.empty_like(x)
    _function()(
        x.data_ptr(),
        rotation_2TP.data_ptr(),
        y.data_ptr(),
        x.shape[0],
        math.prod(x.shape[1:-1]),
        x.shape[-1],
        rotation_2TP.shape[-1],
        inverse,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return y
