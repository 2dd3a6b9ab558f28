"""Packed cache rows in plain torch. The layout is described in the contract beside this file.

N rows, C entry dim, Q quantised dims of an entry, R rotary dims, I indexer dim, K dims filled up to whole blocks,
B bytes of a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4.kernels import quant

ENTRY_BLOCK = 64
INDEX_BLOCK = 32
_NAN_FP8, _NAN_BF16, _NAN_SCALE = 0x7F, 0x7FC0, 255


def entry_bytes(dim: int, rope_dim: int) -> int:
    plain = dim - rope_dim
    return -(-(plain + 2 * rope_dim - (-plain // ENTRY_BLOCK)) // 8) * 8


def index_bytes(dim: int) -> int:
    return dim // 2 - (-dim // INDEX_BLOCK)


@torch.no_grad()
def pack_entry(kv_NC: Tensor, rope_dim: int) -> Tensor:
    """See dsv4.kernels.rows.pack_entry."""
    rows, dim = kv_NC.shape
    split = dim - rope_dim
    kv_NC = kv_NC.to(torch.float32)
    # NOTE: a block whose largest value rounds down to half the format's range would get the next smaller scale when it
    # is cast again; casting twice stores what any later cast would store.
    q_NQ, scale = quant.quantize_fp8(quant.simulate_fp8(kv_NC[:, :split], ENTRY_BLOCK), ENTRY_BLOCK)
    scale = scale.view(torch.uint8)
    broken_NQ = (scale == _NAN_SCALE).repeat_interleave(ENTRY_BLOCK, dim=1)[:, :split]
    rotary_NR = kv_NC[:, split:].to(torch.bfloat16)
    bits_NR = rotary_NR.view(torch.int16).masked_fill(rotary_NR.isnan(), _NAN_BF16)
    parts = [
        q_NQ.view(torch.uint8).masked_fill(broken_NQ, _NAN_FP8),
        bits_NR.contiguous().view(torch.uint8).view(rows, 2 * rope_dim),
        scale,
    ]
    row_NB = torch.cat(parts, dim=1)
    return F.pad(row_NB, (0, entry_bytes(dim, rope_dim) - row_NB.shape[1]))


def unpack_entry(rows_NB: Tensor, dim: int, rope_dim: int) -> Tensor:
    """See dsv4.kernels.rows.unpack_entry; float32."""
    split, blocks = dim - rope_dim, -(-(dim - rope_dim) // ENTRY_BLOCK)
    q_NQ = rows_NB[:, :split].contiguous().view(torch.float8_e4m3fn).to(torch.float32)
    # copied, because the view needs an even address
    bits_NR = rows_NB[:, split : split + 2 * rope_dim].clone().flatten()
    rotary_NR = bits_NR.view(torch.bfloat16).view(-1, rope_dim) if rope_dim else q_NQ[:, :0]
    scale = rows_NB[:, split + 2 * rope_dim :][:, :blocks].contiguous().view(torch.float8_e8m0fnu)
    scale_NQ = quant.e8m0_to_float(scale).repeat_interleave(ENTRY_BLOCK, dim=1)[:, :split]
    return torch.cat([q_NQ * scale_NQ, rotary_NR.to(torch.float32)], dim=1)


@torch.no_grad()
def pack_index(key_NI: Tensor) -> Tensor:
    """See dsv4.kernels.rows.pack_index."""
    dim = key_NI.shape[1]
    key_NK = F.pad(key_NI.to(torch.float32), (0, -dim % INDEX_BLOCK))
    packed, scale = quant.quantize_fp4(quant.simulate_fp4(key_NK))  # twice: see pack_entry
    scale = scale.view(torch.uint8)
    broken = (scale == _NAN_SCALE).repeat_interleave(INDEX_BLOCK // 2, dim=1)
    return torch.cat([packed.view(torch.uint8).masked_fill(broken, 0)[:, : dim // 2], scale], dim=1)


def unpack_index(rows_NB: Tensor, dim: int) -> Tensor:
    """See dsv4.kernels.rows.unpack_index; float32."""
    value_NI = quant.packed_fp4_to_float(rows_NB[:, : dim // 2].contiguous().view(torch.int8))
    scale = rows_NB[:, dim // 2 :].contiguous().view(torch.float8_e8m0fnu)
    return value_NI * quant.e8m0_to_float(scale).repeat_interleave(INDEX_BLOCK, dim=1)[:, :dim]
