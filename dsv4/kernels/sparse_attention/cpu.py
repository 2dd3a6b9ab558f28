"""Sparse attention by the native kernel: one call for all queries, rows read where they lie.

T queries, H heads, C entry dim, W window rows, M entry rows.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsv4.kernels import native

if TYPE_CHECKING:
    from dsv4.kernels.sparse_attention import KeySet

_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}


class _Rows(ctypes.Structure):
    """`Rows` of native/rows.h."""

    _fields_ = (("first", _POINTER), ("stride", _INT64), ("dim", _INT64), ("rope", _INT64), ("kind", ctypes.c_int))


class _Call(ctypes.Structure):
    """`AttentionCall` of native/attention.h."""

    _fields_ = (
        *((name, _POINTER) for name in ("q", "out")),
        *((name, _Rows) for name in ("window", "entries")),
        *((name, _POINTER) for name in ("window_range", "runs", "prefix", "first", "sequence", "chosen", "sink")),
        *((name, _INT64) for name in ("runs_count", "pages", "per_page", "chosen_count", "heads", "dim")),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int),
    )


@cache
def _function() -> Callable[..., None]:
    return native.function("dsv4_sparse_attention", [ctypes.POINTER(_Call)])


def supported(q_THC: Tensor, window_WC: Tensor, entries_MC: Tensor | None) -> bool:
    """Whether the native kernel takes these dtypes and this device now."""
    return (
        native.usable(q_THC, window_WC, entries_MC)
        and q_THC.dtype in (torch.float32, torch.bfloat16)
        and window_WC.dtype in (torch.float32, torch.bfloat16)
        and (entries_MC is None or entries_MC.dtype in _KINDS)
    )


def _rows(rows_MC: Tensor | None, dim: int, rope_dim: int) -> _Rows:
    if rows_MC is None:
        return _Rows()
    assert rows_MC.stride(1) == 1 or rows_MC.shape[0] == 0
    stride = rows_MC.stride(0) * rows_MC.element_size()
    return _Rows(rows_MC.data_ptr(), stride, dim, rope_dim, _KINDS[rows_MC.dtype])


def sparse_attention(
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor | None,
    keys: "KeySet",
    sink_H: Tensor,
    scale: float,
    rope_dim: int,
) -> Tensor:
    """See dsv4.kernels.sparse_attention.sparse_attention. Scores, softmax and sums in fp32."""
    _, heads, dim = q_THC.shape
    q = q_THC.to(torch.float32).contiguous()
    out = torch.empty_like(q)
    window, sink = window_WC.contiguous(), sink_H.to(torch.float32).contiguous()
    window_range = keys.window_T2.contiguous()
    call = _Call(
        q=q.data_ptr(),
        out=out.data_ptr(),
        window=_rows(window, dim, 0),
        entries=_rows(entries_MC, dim, rope_dim),
        window_range=window_range.data_ptr(),
        runs=ctypes.addressof(runs := (_INT64 * len(keys.runs))(*keys.runs)),
        sink=sink.data_ptr(),
        runs_count=len(runs),
        heads=heads,
        dim=dim,
        scale=scale,
        threads=torch.get_num_threads(),
    )
    # these tensors must live until the call is over
    prefix = first = sequence = chosen = None
    if keys.prefix_T is not None and keys.longest_prefix:
        assert keys.pages is not None
        prefix, first = keys.prefix_T.contiguous(), keys.pages.first_BP.contiguous()
        sequence = keys.pages.sequence_T.contiguous()
        call.prefix, call.first, call.sequence = prefix.data_ptr(), first.data_ptr(), sequence.data_ptr()
        call.pages, call.per_page = first.shape[1], keys.pages.entries_per_page
    if keys.chosen_TK is not None and keys.chosen_TK.shape[1]:
        chosen = keys.chosen_TK.contiguous()
        call.chosen, call.chosen_count = chosen.data_ptr(), chosen.shape[1]
    if q.shape[0]:
        _function()(call)
    return out.to(q_THC.dtype)
