"""Rotary embedding as one native call.

T tokens, C entry dim, P pairs.
"""

import ctypes
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.native.operators import operator


@cache
def _function() -> Callable[..., None]:
    return native.function("dsv4_rope", [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 4 + [ctypes.c_int] * 3)


def usable(x: Tensor, rotation_2TP: Tensor) -> bool:
    """Whether the native kernel takes these: float32 or bfloat16 rows, a float32 table with a row for each token."""
    return not torch.is_grad_enabled() and trainable(x, rotation_2TP)


def trainable(x: Tensor, rotation_2TP: Tensor) -> bool:
    """The same inside an autograd node."""
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and rotation_2TP.dtype == torch.float32
        and rotation_2TP.shape[1] == x.shape[0]
        and native.reachable(x, rotation_2TP)
    )


@operator("rope(Tensor x, Tensor rotation_2TP, bool inverse) -> Tensor", lambda x, *_: x.new_empty(x.shape))
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


def trained(x: Tensor, rotation_2TP: Tensor, inverse: bool) -> Tensor:
    """The same as one autograd node: the gradient is turned the other way. None for the rotation."""
    return _Rope.apply(x, rotation_2TP, inverse)  # pyrefly: ignore


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation_2TP: Tensor, inverse: bool) -> Tensor:
        ctx.save_for_backward(rotation_2TP)
        ctx.inverse = inverse
        return apply_rope(x, rotation_2TP, inverse)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyrefly: ignore
        (rotation_2TP,) = ctx.saved_tensors
        return apply_rope(grad, rotation_2TP, not ctx.inverse), None, None
