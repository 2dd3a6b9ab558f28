"""Hyper-connections, each side of a sub-layer as one native call.

Legend: T tokens, S streams, D hidden size, Z = S * D, X = (2 + S) * S mixes.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.native.operators import operator
from dsv4.kernels.native.structs import EnterBackward

MOST_STREAMS = 8  # as in hyper.cpp


@cache
def _enter() -> Callable[..., None]:
    arguments = (
        [ctypes.c_void_p] * 8 + [ctypes.c_int64] * 3 + [ctypes.c_int] + [ctypes.c_float] * 2 + [ctypes.c_int] * 2
    )
    return native.function("dsv4_hyper_enter", arguments)


@cache
def _combine() -> Callable[..., None]:
    return native.function("dsv4_hyper_combine", [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 3 + [ctypes.c_int] * 2)


@cache
def _enter_backward() -> Callable[..., None]:
    return native.function("dsv4_hyper_enter_backward", [ctypes.POINTER(EnterBackward)])


@cache
def _combine_backward() -> Callable[..., None]:
    arguments = [ctypes.c_void_p] * 9 + [ctypes.c_int64] * 3 + [ctypes.c_int]
    return native.function("dsv4_hyper_combine_backward", arguments)


def takes(x_TSD: Tensor, fn_XZ: Tensor, scale: Tensor, base: Tensor, *_: float) -> str | None:
    """The reason why the native kernels do not accept these inputs; None if they accept them: streams in float32 or
    bfloat16, parameters in float32."""
    return _takes_streams(x_TSD) or _takes_float32(fn_XZ, scale, base)


def takes_combine(y_TD: Tensor, x_TSD: Tensor, post_TS: Tensor, comb_TSS: Tensor) -> str | None:
    """The same for `combine`."""
    if y_TD.dtype != x_TSD.dtype:
        return f"the output of the sub-layer is {y_TD.dtype}, the streams are {x_TSD.dtype}"
    return _takes_streams(x_TSD) or _takes_float32(post_TS, comb_TSS)


def _takes_streams(x_TSD: Tensor) -> str | None:
    if x_TSD.shape[1] > MOST_STREAMS:
        return f"there are {x_TSD.shape[1]} streams, more than {MOST_STREAMS}"
    return native.needs(x_TSD, (torch.float32, torch.bfloat16), "x")


def _takes_float32(*tensors: Tensor) -> str | None:
    return next((why for t in tensors if (why := native.needs(t, (torch.float32,), "a parameter or gate"))), None)


def _entered_like(x_TSD: Tensor, fn_XZ: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    T, S, D = x_TSD.shape
    return x_TSD.new_empty(T, D), fn_XZ.new_empty(T, S), fn_XZ.new_empty(T, S, S)


@operator(
    "hyper_enter(Tensor x_TSD, Tensor fn_XZ, Tensor scale_3, Tensor base_X, int iterations, float eps, float norm_eps)"
    " -> (Tensor, Tensor, Tensor)",
    _entered_like,
)
def enter(
    x_TSD: Tensor,
    fn_XZ: Tensor,
    scale_3: Tensor,
    base_X: Tensor,
    iterations: int,
    eps: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See dsv4.kernels.hyper_connection.enter."""
    y_TD, post_TS, comb_TSS = _entered_like(x_TSD, fn_XZ)
    _run(x_TSD, (fn_XZ, scale_3, base_X, None), (y_TD, post_TS, comb_TSS), iterations, eps, norm_eps)
    return y_TD, post_TS, comb_TSS


@operator(
    "hyper_collapse(Tensor x_TSD, Tensor fn_SZ, Tensor scale_1, Tensor base_S, float eps, float norm_eps) -> Tensor",
    lambda x_TSD, *_: x_TSD.new_empty(x_TSD.shape[0], x_TSD.shape[2]),
)
def collapse_head(x_TSD: Tensor, fn_SZ: Tensor, scale_1: Tensor, base_S: Tensor, eps: float, norm_eps: float) -> Tensor:
    """See dsv4.kernels.hyper_connection.collapse_head."""
    y_TD = x_TSD.new_empty(x_TSD.shape[0], x_TSD.shape[2])
    _run(x_TSD, (fn_SZ, scale_1, base_S, None), (y_TD, None, None), 1, eps, norm_eps)
    return y_TD


def _run(
    x_TSD: Tensor,
    parameters: tuple[Tensor | None, ...],
    outputs: tuple[Tensor | None, ...],
    iterations: int,
    eps: float,
    norm_eps: float,
) -> None:
    x_TSD = x_TSD.contiguous()
    T, S, D = x_TSD.shape
    _enter()(
        x_TSD.data_ptr(),
        *(native.pointer(p) for p in parameters),
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


@operator(
    "hyper_combine(Tensor y_TD, Tensor x_TSD, Tensor post_TS, Tensor comb_TSS) -> Tensor",
    lambda y_TD, x_TSD, *_: x_TSD.new_empty(x_TSD.shape),
)
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


def enter_backward(
    gradients: tuple[Tensor | None, ...],
    kept: Sequence[Tensor],
    x_TSD: Tensor,
    fn_XZ: Tensor,
    scale: Tensor,
    base_X: Tensor,
    iterations: int,
    eps: float,
    norm_eps: float,
) -> tuple[Tensor, ...]:
    """Gradients of x, fn, scale and base given those of y, post and comb; None twice for the collapse before the head.

    Added up in fp32 in an order that does not depend on the number of threads.
    """
    inputs = [t.to(torch.float32).contiguous() for t in (x_TSD, fn_XZ, scale, base_X)]
    given = [None if g is None else g.to(torch.float32).contiguous() for g in gradients]
    outputs = [torch.empty_like(t) for t in inputs]
    pointers = [native.pointer(t) for t in (*inputs, *given, *outputs)]
    _enter_backward()(EnterBackward(*pointers, *x_TSD.shape, eps, norm_eps, iterations, torch.get_num_threads()))
    return outputs[0].to(x_TSD.dtype), *outputs[1:]


def collapse_head_backward(
    gradients: tuple[Tensor],
    kept: Sequence[Tensor],
    x_TSD: Tensor,
    fn_SZ: Tensor,
    scale_1: Tensor,
    base_S: Tensor,
    eps: float,
    norm_eps: float,
) -> tuple[Tensor, ...]:
    """Gradients of x, fn, scale and base given that of y."""
    return enter_backward((*gradients, None, None), kept, x_TSD, fn_SZ, scale_1, base_S, 1, eps, norm_eps)


def combine_backward(
    gradients: tuple[Tensor], kept: Sequence[Tensor], y_TD: Tensor, x_TSD: Tensor, post_TS: Tensor, comb_TSS: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of y, x, post and comb given that of the new streams."""
    inputs = [t.to(torch.float32).contiguous() for t in (y_TD, x_TSD, post_TS, comb_TSS)]
    grad_TSD = gradients[0].to(torch.float32).contiguous()
    outputs = [torch.empty_like(t) for t in inputs]
    pointers = [t.data_ptr() for t in (*inputs, grad_TSD, *outputs)]
    _combine_backward()(*pointers, *x_TSD.shape, torch.get_num_threads())
    return outputs[0].to(y_TD.dtype), outputs[1].to(x_TSD.dtype), *outputs[2:]
