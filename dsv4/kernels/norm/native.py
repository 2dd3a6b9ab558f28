"""RMSNorm as one native call."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.native.operators import operator


@cache
def _function() -> Callable[..., None]:
    return native.function(
        "dsv4_rms_norm", [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2 + [ctypes.c_float] + [ctypes.c_int] * 2
    )


@cache
def _backward_function() -> Callable[..., None]:
    arguments = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 2 + [ctypes.c_float, ctypes.c_int]
    return native.function("dsv4_rms_norm_backward", arguments)


def takes(x: Tensor, weight_D: Tensor | None, eps: float) -> str | None:
    """The reason why the native kernel does not accept these inputs; None if it accepts them."""
    return native.needs(x, (torch.float32, torch.bfloat16), "x") or native.needs(
        weight_D, (torch.float32,), "the weight"
    )


@operator("rms_norm(Tensor x, Tensor? weight_D, float eps) -> Tensor", lambda x, *_: x.new_empty(x.shape))
def rms_norm(x: Tensor, weight_D: Tensor | None, eps: float) -> Tensor:
    """See dsv4.kernels.norm.rms_norm."""
    x = x.contiguous()
    y, dim = torch.empty_like(x), x.shape[-1]
    weight = None if weight_D is None else weight_D.contiguous().data_ptr()
    rows = x.numel() // dim if dim else 0
    _function()(x.data_ptr(), weight, y.data_ptr(), rows, dim, eps, x.dtype == torch.bfloat16, torch.get_num_threads())
    return y


def backward(
    gradients: tuple[Tensor], kept: Sequence[Tensor], x: Tensor, weight_D: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of the weight (None without one), given that of the result. Sums in fp32, in an order that
    does not depend on the number of threads."""
    wide, grad = (t.to(torch.float32).contiguous() for t in (x, gradients[0]))
    weight = None if weight_D is None else weight_D.contiguous()
    d_x, d_weight = torch.empty_like(wide), None if weight is None else torch.empty_like(weight)
    dim = x.shape[-1]
    pointers = [native.pointer(t) for t in (wide, weight, grad, d_x, d_weight)]
    _backward_function()(*pointers, x.numel() // dim if dim else 0, dim, eps, torch.get_num_threads())
    return d_x.to(x.dtype), d_weight
