"""Rotary embedding as one native call.

Legend: T tokens, C head dim, P frequency pairs.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.native.operators import operator


@cache
def _function() -> Callable[..., None]:
    return native.function("dsv4_rope", [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 4 + [ctypes.c_int] * 3)


def takes(x: Tensor, rotation_2TP: Tensor, inverse: bool) -> str | None:
    """The reason why the native kernel does not accept these inputs; None if it accepts them."""
    if rotation_2TP.shape[1] != x.shape[0]:
        return f"the rotation has {rotation_2TP.shape[1]} rows for {x.shape[0]} tokens"
    return native.needs(x, (torch.float32, torch.bfloat16), "x") or native.needs(
        rotation_2TP, (torch.float32,), "the rotation"
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


def backward(
    gradients: tuple[Tensor], kept: Sequence[Tensor], x: Tensor, rotation_2TP: Tensor, inverse: bool
) -> tuple[Tensor]:
    """The gradient of x is the gradient of the result, rotated back. The rotation has no gradient."""
    return (apply_rope(gradients[0], rotation_2TP, not inverse),)
