"""The linear layer's product on the CPU: weights read in place as they are stored, one native call.

Legend: T tokens, K input columns, N output rows.
An output element is one chain of fused multiply-adds over its weight row, for every T, tile size and number of threads.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.native.operators import operator

F32, BF16, FP8, FP8_FLOAT_SCALE, FP4 = 0, 1, 2, 3, 6  # `Kind` of dequant.h
_FLOAT_KINDS = {torch.float32: F32, torch.bfloat16: BF16}
_SCALES = (torch.float8_e8m0fnu, torch.float32)


@cache
def _function() -> Callable[..., None]:
    return native.function("dsv4_linear", [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3 + [ctypes.c_int] * 4)


def weight_kind(weight: Tensor, scale: Tensor | None) -> int | None:
    """The native code's name of this weight's format; None if it has no kernel for it."""
    if scale is None:
        return _FLOAT_KINDS.get(weight.dtype)
    if weight.dtype == torch.int8:
        return FP4 if scale.dtype == torch.float8_e8m0fnu else None
    return {torch.float8_e8m0fnu: FP8, torch.float32: FP8_FLOAT_SCALE}.get(scale.dtype)


def takes(x_TK: Tensor, weight: Tensor, scale: Tensor | None, *_: object) -> str | None:
    """Why `linear` does not take these; None if it does."""
    if weight_kind(weight, scale) is None:
        scales = "no scales" if scale is None else f"scales of {scale.dtype}"
        return f"there is no kernel for a weight of {weight.dtype} with {scales}"
    if not weight.is_contiguous() or (scale is not None and not scale.is_contiguous()):
        return "the weight or its scale is not contiguous"
    return (
        native.needs(x_TK, (torch.float32, torch.bfloat16), "x")
        or native.needs(weight, (weight.dtype,), "the weight")
        or native.needs(scale, _SCALES, "the scale")
    )


@operator(
    "linear(Tensor x_TK, Tensor weight, Tensor? scale, bool quantize_activations) -> Tensor",
    lambda x_TK, weight, *_: x_TK.new_empty(*x_TK.shape[:-1], weight.shape[0]),
)
def linear(x_TK: Tensor, weight: Tensor, scale: Tensor | None, quantize_activations: bool) -> Tensor:
    """See `dsv4.kernels.matmul.linear`."""
    kind = weight_kind(weight, scale)
    assert kind is not None
    N, K = weight.shape[0], x_TK.shape[-1]
    x_TK = x_TK.contiguous()
    y_TN = x_TK.new_empty(*x_TK.shape[:-1], N)
    _function()(
        x_TK.data_ptr(),
        weight.data_ptr(),
        None if scale is None else scale.data_ptr(),
        y_TN.data_ptr(),
        x_TK.numel() // K if K else 0,
        N,
        K,
        kind,
        x_TK.dtype == torch.bfloat16,
        quantize_activations and scale is not None,
        torch.get_num_threads(),
    )
    return y_TN if K else y_TN.zero_()
