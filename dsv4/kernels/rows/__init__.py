"""Packed cache rows: the stored form of a compressed entry and of an indexer key, and the casts to and from it.

An entry row, dim C with R rotary values, `entry_bytes(C, R)` long:
    C - R bytes                 e4m3 values of the dims before the rotary ones
    2 R bytes                   the rotary values, bfloat16, little endian
    ceil((C - R) / 64) bytes    e8m0 scales: value = e4m3 * 2^(byte - 127), one scale per 64 values
    zeros up to a multiple of 8
An index row, dim I, `index_bytes(I)` long:
    I / 2 bytes                 e2m1 codes, the even dim in the low nibble
    ceil(I / 32) bytes          e8m0 scales, one per 32 values
The last block of either is short where the dim is no multiple of the block.

Every value has one stored form: a block's largest magnitude is above half of the format's largest, unless its scale is
the smallest one. Packing an unpacked row therefore gives the same bytes. A block with NaN or infinity, or with a value
that the cast rounds up to infinity (above 2.9e38), has scale byte 255 and unpacks to NaN.

Legend: M entry rows, C head dim, I indexer dim, B bytes of a row.
"""

import torch
from torch import Tensor

from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.rows import native, reference

ENTRY_BLOCK = reference.ENTRY_BLOCK
INDEX_BLOCK = reference.INDEX_BLOCK

__all__ = [
    "ENTRY_BLOCK",
    "INDEX_BLOCK",
    "entry_bytes",
    "index_bytes",
    "pack_entry",
    "pack_index",
    "unpack_entry",
    "unpack_index",
]


def entry_bytes(dim: int, rope_dim: int) -> int:
    """Bytes of one packed entry. Raises ValueError unless 0 <= rope_dim <= dim and dim > 0."""
    if dim < 1 or not 0 <= rope_dim <= dim:
        raise ValueError(f"an entry needs dim > 0 and 0 <= rope_dim <= dim, got {dim} and {rope_dim}")
    return reference.entry_bytes(dim, rope_dim)


def index_bytes(dim: int) -> int:
    """Bytes of one packed indexer key. Raises ValueError unless dim is even and > 0."""
    if dim < 2 or dim % 2:
        raise ValueError(f"an index row needs an even dim > 0, got {dim}")
    return reference.index_bytes(dim)


def pack_entry(kv_MC: Tensor, rope_dim: int, *, impl: str | None = None) -> Tensor:
    """Float rows -> uint8 [M, entry_bytes(C, rope_dim)]. The first C - rope_dim values are cast as
    `quant.simulate_fp8` does in blocks of 64, the last rope_dim are rounded to bfloat16."""
    _check("pack_entry", kv_MC, None)
    entry_bytes(kv_MC.shape[1], rope_dim)
    return dispatch("rows.pack_entry", impl, _PACK_ENTRY, kv_MC, rope_dim)


def unpack_entry(
    rows_MB: Tensor, dim: int, rope_dim: int, dtype: torch.dtype = torch.float32, *, impl: str | None = None
) -> Tensor:
    """uint8 rows of `pack_entry` -> [M, dim]. Exact in float32. Raises ValueError for rows of another length."""
    _check("unpack_entry", rows_MB, entry_bytes(dim, rope_dim))
    return dispatch("rows.unpack_entry", impl, _UNPACK_ENTRY, rows_MB, dim, rope_dim).to(dtype)


def pack_index(key_MI: Tensor, *, impl: str | None = None) -> Tensor:
    """Float keys -> uint8 [M, index_bytes(I)], cast as `quant.simulate_fp4` does in blocks of 32. I must be even."""
    _check("pack_index", key_MI, None)
    index_bytes(key_MI.shape[1])
    return dispatch("rows.pack_index", impl, _PACK_INDEX, key_MI)


def unpack_index(rows_MB: Tensor, dim: int, dtype: torch.dtype = torch.float32, *, impl: str | None = None) -> Tensor:
    """uint8 rows of `pack_index` -> [M, dim]. Exact in float32. Raises ValueError for rows of another length."""
    _check("unpack_index", rows_MB, index_bytes(dim))
    return dispatch("rows.unpack_index", impl, _UNPACK_INDEX, rows_MB, dim).to(dtype)


def _check(what: str, x: Tensor, width: int | None) -> None:
    if x.dim() != 2 or (x.dtype == torch.uint8) != (width is not None) or (width is not None and x.shape[1] != width):
        wanted = "float rows [N, dim]" if width is None else f"uint8 rows [N, {width}]"
        raise ValueError(f"rows.{what} needs {wanted}, got {x.dtype} {list(x.shape)}")


def _implementations(name: str) -> tuple[Implementation, ...]:
    definition = getattr(reference, name)
    return (
        Implementation("native", getattr(native, name), native.takes),
        Implementation("reference", definition, differentiable=definition),
    )


_PACK_ENTRY = _implementations("pack_entry")
_UNPACK_ENTRY = _implementations("unpack_entry")
_PACK_INDEX = _implementations("pack_index")
_UNPACK_INDEX = _implementations("unpack_index")
