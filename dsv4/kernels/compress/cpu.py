"""Gated pooling by the native kernel.

R joined rows, N finished blocks, m tokens per block, W projection width, C entry dim.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native


class _Call(ctypes.Structure):
    """`PoolCall` of native/compress.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("kv", "score", "own", "previous", "out")),
        *((name, ctypes.c_int64) for name in ("kv_stride", "score_stride", "blocks", "rows", "dim")),
        ("threads", ctypes.c_int),
    )


@cache
def _function() -> Callable[..., None]:
    return native.function("dsv4_pool", [ctypes.POINTER(_Call)])


def supported(kv_RW: Tensor, score_RW: Tensor) -> bool:
    """Whether the native kernel takes these dtypes and this device now."""
    return kv_RW.dtype == score_RW.dtype == torch.float32 and native.usable(kv_RW, score_RW)


def _rows(x_RW: Tensor) -> Tensor:
    """Columns side by side; halves of one tensor stay where they are."""
    return x_RW if x_RW.stride(1) == 1 else x_RW.contiguous()


def pool(kv_RW: Tensor, score_RW: Tensor, own_Nm: Tensor, previous_Nm: Tensor | None) -> Tensor:
    """See dsv4.kernels.compress.pool."""
    kv, score, own = _rows(kv_RW), _rows(score_RW), own_Nm.contiguous()
    previous = None if previous_Nm is None else previous_Nm.contiguous()
    dim = kv.shape[1] if previous is None else kv.shape[1] // 2
    out_NC = torch.empty(own.shape[0], dim, dtype=torch.float32)
    if own.numel():
        call = _Call(
            kv.data_ptr(),
            score.data_ptr(),
            own.data_ptr(),
            native.pointer(previous),
            out_NC.data_ptr(),
            kv.stride(0),
            score.stride(0),
            own.shape[0],
            own.shape[1],
            dim,
            torch.get_num_threads(),
        )
        _function()(call)
    return out_NC
