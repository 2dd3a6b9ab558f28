"""Gated pooling by the native kernel.

Legend: R gathered rows, N finished entries, m tokens per entry, W projection width, C head dim.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.native.operators import operator
from dsv4.kernels.native.structs import PoolBackward, PoolCall


@cache
def _backward_function() -> Callable[..., None]:
    return native.function("dsv4_pool_backward", [ctypes.POINTER(PoolBackward)])


@cache
def _function() -> Callable[..., None]:
    return native.function("dsv4_pool", [ctypes.POINTER(PoolCall)])


def takes(kv_RW: Tensor, score_RW: Tensor, own_Nm: Tensor, previous_Nm: Tensor | None) -> str | None:
    """The reason why the native kernel does not accept these inputs; None if it accepts them."""
    return native.needs(kv_RW, (torch.float32,), "kv") or native.needs(score_RW, (torch.float32,), "the score")


def _rows(x_RW: Tensor) -> Tensor:
    """Columns side by side; halves of one tensor stay where they are."""
    return x_RW if x_RW.stride(1) == 1 else x_RW.contiguous()


def _pooled_like(kv_RW: Tensor, score_RW: Tensor, own_Nm: Tensor, previous_Nm: Tensor | None) -> Tensor:
    dim = kv_RW.shape[1] if previous_Nm is None else kv_RW.shape[1] // 2
    return kv_RW.new_empty(own_Nm.shape[0], dim, dtype=torch.float32)


@operator("pool(Tensor kv_RW, Tensor score_RW, Tensor own_Nm, Tensor? previous_Nm) -> Tensor", _pooled_like)
def pool(kv_RW: Tensor, score_RW: Tensor, own_Nm: Tensor, previous_Nm: Tensor | None) -> Tensor:
    """See dsv4.kernels.compress.pool."""
    out_NC = _pooled_like(kv_RW, score_RW, own_Nm, previous_Nm)
    if own_Nm.numel():
        call, _held = _call(kv_RW, score_RW, own_Nm, previous_Nm, out_NC)
        _function()(call)
    return out_NC


def _call(
    kv_RW: Tensor, score_RW: Tensor, own_Nm: Tensor, previous_Nm: Tensor | None, out_NC: Tensor
) -> tuple[PoolCall, list[Tensor | None]]:
    """The arguments of the native code, and the tensors that must live until it returns."""
    kv, score, own = _rows(kv_RW), _rows(score_RW), own_Nm.contiguous()
    previous = None if previous_Nm is None else previous_Nm.contiguous()
    call = PoolCall(
        kv.data_ptr(),
        score.data_ptr(),
        own.data_ptr(),
        native.pointer(previous),
        out_NC.data_ptr(),
        kv.stride(0),
        score.stride(0),
        own.shape[0],
        own.shape[1],
        out_NC.shape[1],
        torch.get_num_threads(),
    )
    return call, [kv, score, own, previous, out_NC]


def backward(
    gradients: tuple[Tensor],
    kept: Sequence[Tensor],
    kv_RW: Tensor,
    score_RW: Tensor,
    own_Nm: Tensor,
    previous_Nm: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of kv and score, given that of the result; kept: the result."""
    grad_NC, out_NC = gradients[0].contiguous(), kept[0]
    d_kv, d_score = (torch.zeros(t.shape, dtype=torch.float32) for t in (kv_RW, score_RW))
    if own_Nm.numel():
        call, _held = _call(kv_RW, score_RW, own_Nm, previous_Nm, out_NC)
        pointers = [t.data_ptr() for t in (grad_NC, d_kv, d_score)]
        _backward_function()(PoolBackward(call, *pointers, kv_RW.shape[1]))
    return d_kv, d_score
