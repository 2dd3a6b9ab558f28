"""Round trips through FP8 and FP4 as one native call each, without the stored form.

Legend: K input columns, N output rows.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.native.operators import operator
from dsv4.kernels.quant import reference


@cache
def _function(name: str) -> Callable[..., None]:
    return native.function(name, [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3 + [ctypes.c_int])


@cache
def _weight_function() -> Callable[..., None]:
    arguments = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_int]
    return native.function("dsv4_simulate_fp8_weight", arguments)


def takes(x: Tensor, *_: object) -> str | None:
    """Why the native casts do not take x; None if they do."""
    return native.needs(x, (torch.float32, torch.bfloat16), "x")


@operator("simulate_fp8(Tensor x, int block) -> Tensor", lambda x, _: x.new_empty(x.shape))
def simulate_fp8(x: Tensor, block: int) -> Tensor:
    """See dsv4.kernels.quant.simulate_fp8."""
    return _rows_through("dsv4_simulate_fp8", x, block)


@operator("simulate_fp4(Tensor x, int block) -> Tensor", lambda x, _: x.new_empty(x.shape))
def simulate_fp4(x: Tensor, block: int) -> Tensor:
    """See dsv4.kernels.quant.simulate_fp4."""
    reference.check_fp4_block(x, block)
    return _rows_through("dsv4_simulate_fp4", x, block)


def _rows_through(name: str, x: Tensor, block: int) -> Tensor:
    wide = x.to(torch.float32).contiguous()
    out, columns = torch.empty_like(wide), x.shape[-1]
    if x.numel():
        _function(name)(wide.data_ptr(), out.data_ptr(), x.numel() // columns, columns, block, torch.get_num_threads())
    return out.to(x.dtype)


def simulate_fp8_weight(w_NK: Tensor) -> Tensor:
    """See dsv4.kernels.quant.simulate_fp8_weight."""
    wide = w_NK.to(torch.float32).contiguous()
    out_NK = torch.empty_like(wide)
    _weight_function()(wide.data_ptr(), out_NK.data_ptr(), *wide.shape, torch.get_num_threads())
    # the definition says which rows hold NaN
    return out_NK if bool(out_NK.isfinite().all()) else reference.simulate_fp8_weight(w_NK)


def simulate_fp4_weight(w_NK: Tensor) -> Tensor:
    """See dsv4.kernels.quant.simulate_fp4_weight."""
    out_NK = simulate_fp4(w_NK.to(torch.float32), reference.FP4_BLOCK)
    return out_NK if bool(out_NK.isfinite().all()) else reference.simulate_fp4_weight(w_NK)
