"""Hyper-connections, each side of a sub-layer as one native call.

T tokens, S streams, D hidden size, E = S * D, X = (2 + S) * S mixes.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native

MOST_STREAMS = 8  # as in native/hyper.cpp


@cache
def _enter() -> Callable[..., None]:
    arguments = (
        [ctypes.c_void_p] * 8 + [ctypes.c_int64] * 3 + [ctypes.c_int] + [ctypes.c_float] * 2 + [ctypes.c_int] * 2
    )
    return native.function("dsv4_hyper_enter", arguments)


@cache
def _combine() -> Callable[..., None]:
    return native.function("dsv4_hyper_combine", [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 3 + [ctypes.c_int] * 2)


def usable(x_TSD: Tensor, *others: Tensor | None) -> bool:
    """Whether the native kernels take these: x (and a sub-layer's output) float32 or bfloat16, the rest float32."""
    return (
        x_TSD.dtype in (torch.float32, torch.bfloat16)
        and x_TSD.shape[1] <= MOST_STREAMS
        and all(t is None or t.dtype == torch.float32 for t in others)
        and native.usable(x_TSD, *others)
    )


def enter(
    x_TSD: Tensor,
    fn_XE: Tensor,
    scale_3: Tensor,
    base_X: Tensor,
    iterations: int,
    eps: float,
    norm_eps: float,
    norm_D: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See dsv4.kernels.hyper_connection.enter."""
    T, S, _ = x_TSD.shape
    post_TS, comb_TSS = fn_XE.new_empty(T, S), fn_XE.new_empty(T, S, S)
    y_TD = _run(x_TSD, (fn_XE, scale_3, base_X, norm_D), (post_TS, comb_TSS), iterations, eps, norm_eps)
    return y_TD, post_TS, comb_TSS


def collapse_head(x_TSD: Tensor, fn_SE: Tensor, scale_1: Tensor, base_S: Tensor, eps: float, norm_eps: float) -> Tensor:
    """See dsv4.kernels.hyper_connection.collapse_head."""
    return _run(x_TSD, (fn_SE, scale_1, base_S, None), (None, None), 1, eps, norm_eps)


def _run(
    x_TSD: Tensor,
    parameters: tuple[Tensor | None, ...],
    outputs: tuple[Tensor | None, Tensor | None],
    iterations: int,
    eps: float,
    norm_eps: float,
) -> Tensor:
    x_TSD = x_TSD.contiguous()
    T, S, D = x_TSD.shape
    y_TD = x_TSD.new_empty(T, D)
    _enter()(
        x_TSD.data_ptr(),
        *(native.pointer(p) for p in parameters),
        y_TD.data_ptr(),
        *(native.pointer(p) for p in outputs),
        T,
        S,
        D,
        iterations,
        eps,
        norm_eps,
        x_TSD.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return y_TD


def combine(y_TD: Tensor, x_TSD: Tensor, post_TS: Tensor, comb_TSS: Tensor) -> Tensor:
    """See dsv4.kernels.hyper_connection.combine."""
    x_TSD, y_TD = x_TSD.contiguous(), y_TD.contiguous()
    out_TSD = torch.empty_like(x_TSD)
    _combine()(
        y_TD.data_ptr(),
        x_TSD.data_ptr(),
        post_TS.contiguous().data_ptr(),
        comb_TSS.contiguous().data_ptr(),
        out_TSD.data_ptr(),
        *x_TSD.shape,
        x_TSD.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out_TSD
