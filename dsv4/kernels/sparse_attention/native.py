"""Sparse attention by the native kernel: one call for all queries; rows are read in place.

Legend: T tokens, H heads, C head dim, W window rows, M entry rows, K choices per token, B sequences, P pages.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.native.operators import operator
from dsv4.kernels.native.structs import INT64, AttentionBackward, AttentionCall, Rows
from dsv4.kernels.sparse_attention.keys import ChosenEntries, KeySet

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}


@cache
def _function() -> Callable[..., None]:
    return native.function("dsv4_sparse_attention", [ctypes.POINTER(AttentionCall)])


@cache
def _backward_function() -> Callable[..., None]:
    return native.function("dsv4_sparse_attention_backward", [ctypes.POINTER(AttentionBackward)])


def takes(q_THC: Tensor, window_WC: Tensor, entries_MC: Tensor, *_: object) -> str | None:
    """The reason why the native kernel does not accept these inputs; None if it accepts them."""
    floats = (torch.float32, torch.bfloat16)
    return (
        native.needs(q_THC, floats, "q")
        or native.needs(window_WC, floats, "the window")
        or native.needs(entries_MC, tuple(_KINDS), "the entries")
    )


def _rows(rows_MC: Tensor, dim: int, rope_dim: int) -> Rows:
    assert rows_MC.stride(1) == 1 or rows_MC.shape[0] == 0
    stride = rows_MC.stride(0) * rows_MC.element_size()
    return Rows(rows_MC.data_ptr(), stride, dim, rope_dim, _KINDS[rows_MC.dtype])


def sparse_attention(
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor,
    keys: KeySet,
    sink_H: Tensor,
    scale: float,
    rope_dim: int,
) -> Tensor:
    """See dsv4.kernels.sparse_attention.sparse_attention. Scores, softmax and sums in fp32."""
    return _attend(q_THC, window_WC, entries_MC, *_fields(keys), sink_H, scale, rope_dim)


_Fields = tuple[Tensor, Sequence[int], Tensor | None, Tensor | None, Tensor | None, int, Tensor | None]


def _fields(keys: KeySet) -> _Fields:
    """Window ranges, runs; visible entries, pages and sequences of a prefix; entries per page; the choice."""
    read = keys.entries
    if read is None or (not isinstance(read, ChosenEntries) and not read.longest):
        return keys.window_T2, keys.runs, None, None, None, 0, None
    if isinstance(read, ChosenEntries):
        return keys.window_T2, keys.runs, None, None, None, 0, read.rows_TK
    pages = read.pages
    return (
        keys.window_T2,
        keys.runs,
        read.visible_T,
        pages.first_BP,
        pages.sequence_T,
        pages.entries_per_page,
        None,
    )


@operator(
    "sparse_attention(Tensor q_THC, Tensor window_WC, Tensor entries_MC, Tensor window_T2, int[] runs,"
    " Tensor? prefix_T, Tensor? first_BP, Tensor? sequence_T, int per_page, Tensor? chosen_TK, Tensor sink_H,"
    " float scale, int rope_dim) -> Tensor",
    lambda q_THC, *_: q_THC.new_empty(q_THC.shape),
)
def _attend(
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor,
    window_T2: Tensor,
    runs: Sequence[int],
    prefix_T: Tensor | None,
    first_BP: Tensor | None,
    sequence_T: Tensor | None,
    per_page: int,
    chosen_TK: Tensor | None,
    sink_H: Tensor,
    scale: float,
    rope_dim: int,
) -> Tensor:
    q = q_THC.to(torch.float32).contiguous()
    out = torch.empty_like(q)
    fields = window_T2, runs, prefix_T, first_BP, sequence_T, per_page, chosen_TK
    call, _held = _call(q, window_WC, entries_MC, fields, sink_H, scale, rope_dim, out)
    if q.shape[0]:
        _function()(call)
    return out.to(q_THC.dtype)


def backward(
    gradients: tuple[Tensor],
    kept: Sequence[Tensor],
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor,
    keys: KeySet,
    sink_H: Tensor,
    scale: float,
    rope_dim: int,
) -> tuple[Tensor | None, ...]:
    """Gradients of queries, window rows, entries and sink, each in its tensor's dtype, given that of the result; kept:
    the result. Added up in fp32 in an order that does not depend on the number of threads."""
    q, grad, out = (t.to(torch.float32).contiguous() for t in (q_THC, gradients[0], kept[0]))
    d_q, d_sink = torch.empty_like(q), torch.zeros(sink_H.shape, dtype=torch.float32)
    d_window, d_entries = (torch.zeros(t.shape, dtype=torch.float32) for t in (window_WC, entries_MC))
    call, _held = _call(q, window_WC, entries_MC, _fields(keys), sink_H, scale, 0, out)
    grads = (d_q, d_window, d_entries, d_sink)
    if q.shape[0]:
        places = [t.data_ptr() for t in (grad, *grads)]
        _backward_function()(AttentionBackward(call, *places, q.shape[0], entries_MC.shape[0]))
    d_window, d_entries = d_window.to(window_WC.dtype), d_entries.to(entries_MC.dtype)
    return d_q.to(q_THC.dtype), d_window, d_entries, None, d_sink.to(sink_H.dtype)


def attention_call(
    q_THC: Tensor, window_WC: Tensor, entries_MC: Tensor, keys: KeySet, sink_H: Tensor, scale: float
) -> tuple[AttentionCall, list[Any]]:
    """What an attention reads, for other native code, without a place for its result; and the objects that must live
    until that code returns. q: contiguous fp32."""
    return _call(q_THC, window_WC, entries_MC, _fields(keys), sink_H, scale, 0, None)


def _call(
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor,
    fields: _Fields,
    sink_H: Tensor,
    scale: float,
    rope_dim: int,
    out_THC: Tensor | None,
) -> tuple[AttentionCall, list[Any]]:
    """The arguments of the native code, and the objects that must live until it returns. q and out: contiguous fp32."""
    heads, dim = q_THC.shape[1:]
    window, sink = window_WC.contiguous(), sink_H.to(torch.float32).contiguous()
    window_T2, borders, prefix_T, first_BP, sequence_T, per_page, chosen_TK = fields
    window_range, runs = window_T2.contiguous(), (INT64 * len(borders))(*borders)
    held = [q_THC, out_THC, window, entries_MC, sink, window_range, runs]
    call = AttentionCall(
        q_THC=q_THC.data_ptr(),
        out_THC=None if out_THC is None else out_THC.data_ptr(),
        window=_rows(window, dim, 0),
        entries=_rows(entries_MC, dim, rope_dim),
        window_T2=window_range.data_ptr(),
        runs=ctypes.addressof(runs),
        sink_H=sink.data_ptr(),
        runs_count=len(runs),
        heads=heads,
        dim=dim,
        scale=scale,
        threads=torch.get_num_threads(),
    )
    if prefix_T is not None and first_BP is not None and sequence_T is not None:  # three or none
        prefix, first, sequence = (t.contiguous() for t in (prefix_T, first_BP, sequence_T))
        call.prefix_T, call.first_BP, call.sequence_T = prefix.data_ptr(), first.data_ptr(), sequence.data_ptr()
        call.pages, call.per_page = first.shape[1], per_page
        held += [prefix, first, sequence]
    if chosen_TK is not None and chosen_TK.shape[1]:
        chosen = chosen_TK.contiguous()
        call.chosen_TK, call.chosen = chosen.data_ptr(), chosen.shape[1]
        held.append(chosen)
    return call, held
