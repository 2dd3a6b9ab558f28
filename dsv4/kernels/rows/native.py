"""Packed cache rows by the native kernels, float32 in and out.

Legend: M entry rows, C head dim, I indexer dim, B bytes of a row.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.rows.reference import entry_bytes, index_bytes

_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


@cache
def _function(name: str, integers: int) -> Callable[..., None]:
    """A native cast: from, to, some int64 sizes, threads."""
    return native.function(name, [_POINTER, _POINTER, *[_INT64] * integers, _INT])


def _run(name: str, source: Tensor, target: Tensor, *sizes: int) -> Tensor:
    source = source.contiguous()
    _function(name, len(sizes))(source.data_ptr(), target.data_ptr(), *sizes, torch.get_num_threads())
    return target


def takes(x: Tensor, *_: int) -> str | None:
    """The reason why the native casts do not accept these rows; None if they accept them."""
    return native.needs(x, (x.dtype,), "the rows")


def pack_entry(kv_MC: Tensor, rope_dim: int) -> Tensor:
    """See dsv4.kernels.rows.pack_entry."""
    rows, dim = kv_MC.shape
    row_MB = torch.empty(rows, entry_bytes(dim, rope_dim), dtype=torch.uint8)
    return _run("dsv4_pack_entry", kv_MC.to(torch.float32), row_MB, rows, dim, rope_dim, row_MB.shape[1])


def unpack_entry(rows_MB: Tensor, dim: int, rope_dim: int) -> Tensor:
    """See dsv4.kernels.rows.unpack_entry; float32."""
    rows, width = rows_MB.shape
    return _run("dsv4_unpack_entry", rows_MB, torch.empty(rows, dim, dtype=torch.float32), rows, dim, rope_dim, width)


def pack_index(key_MI: Tensor) -> Tensor:
    """See dsv4.kernels.rows.pack_index."""
    rows, dim = key_MI.shape
    row_MB = torch.empty(rows, index_bytes(dim), dtype=torch.uint8)
    return _run("dsv4_pack_index", key_MI.to(torch.float32), row_MB, rows, dim, row_MB.shape[1])


def unpack_index(rows_MB: Tensor, dim: int) -> Tensor:
    """See dsv4.kernels.rows.unpack_index; float32."""
    rows, width = rows_MB.shape
    return _run("dsv4_unpack_index", rows_MB, torch.empty(rows, dim, dtype=torch.float32), rows, dim, width)
