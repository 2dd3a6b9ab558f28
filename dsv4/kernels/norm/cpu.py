"""RMSNorm as one native call."""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native


@cache
def _function() -> Callable[..., None]:
    return native.function(
        "dsv4_rms_norm", [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2 + [ctypes.c_float] + [ctypes.c_int] * 2
    )


def usable(x: Tensor, weight_D: Tensor | None) -> bool:
    """Whether the native kernel takes these: float32 or bfloat16, weight float32."""
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and (weight_D is None or weight_D.dtype == torch.float32)
        and native.usable(x, weight_D)
    )


def rms_norm(x: Tensor, weight_D: Tensor | None, eps: float) -> Tensor:
    """See dsv4.kernels.norm.rms_norm."""
    x = x.contiguous()
    y, dim = torch.empty_like(x), x.shape[-1]
    weight = None if weight_D is None else weight_D.contiguous().data_ptr()
    rows = x.numel() // dim if dim else 0
    _function()(x.data_ptr(), weight, y.data_ptr(), rows, dim, eps, x.dtype == torch.bfloat16, torch.get_num_threads())
    return y
