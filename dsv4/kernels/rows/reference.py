"""Packed cache rows in plain torch. The layout is described in the contract beside this file.

Legend: M entry rows, C head dim, Q quantised dims, R rotary dims, I indexer dim, K dims filled up to whole blocks, B
bytes of a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4.kernels.quant import reference as quant

ENTRY_BLOCK = 64
INDEX_BLOCK = 32
_NAN_FP8, _NAN_BF16, _NAN_SCALE = 0x7F, 0x7FC0, 255


def entry_bytes(dim: int, rope_dim: int) -> int:
    plain = dim - rope_dim
    return -(-(plain + 2 * rope_dim - (-plain // ENTRY_BLOCK)) // 8) * 8


def index_bytes(dim: int) -> int:
    return dim // 2 - (-dim // INDEX_BLOCK)


@torch.no_grad()
def pack_entry(kv_MC: Tensor, rope_dim: int) -> Tensor:
    """See dsv4.kernels.rows.pack_entry."""
    rows, dim = kv_MC.shape
    split = dim - rope_dim
    kv_MC = kv_MC.to(torch.float32)
    # NOTE: a block whose largest value rounds down to half the format's range would get the next smaller scale when it
    # is cast again; casting twice stores what any later cast would store.
    q_MQ, scale = quant.quantize_fp8(quant.simulate_fp8(kv_MC[:, :split], ENTRY_BLOCK), ENTRY_BLOCK)
    scale = scale.view(torch.uint8)
    broken_MQ = (scale == _NAN_SCALE).repeat_interleave(ENTRY_BLOCK, dim=1)[:, :split]
    rotary_MR = kv_MC[:, split:].to(torch.bfloat16)
    bits_MR = rotary_MR.view(torch.int16).masked_fill(rotary_MR.isnan(), _NAN_BF16)
    parts = [
        q_MQ.view(torch.uint8).masked_fill(broken_MQ, _NAN_FP8),
        bits_MR.contiguous().view(torch.uint8).view(rows, 2 * rope_dim),
        scale,
    ]
    row_MB = torch.cat(parts, dim=1)
    return F.pad(row_MB, (0, entry_bytes(dim, rope_dim) - row_MB.shape[1]))


def unpack_entry(rows_MB: Tensor, dim: int, rope_dim: int) -> Tensor:
    """See dsv4.kernels.rows.unpack_entry; float32."""
    split, blocks = dim - rope_dim, -(-(dim - rope_dim) // ENTRY_BLOCK)
    q_MQ = rows_MB[:, :split].contiguous().view(torch.float8_e4m3fn).to(torch.float32)
    # copied, because the view needs an even address
    bits_MR = rows_MB[:, split : split + 2 * rope_dim].clone().flatten()
    rotary_MR = bits_MR.view(torch.bfloat16).view(-1, rope_dim) if rope_dim else q_MQ[:, :0]
    scale = rows_MB[:, split + 2 * rope_dim :][:, :blocks].contiguous().view(torch.float8_e8m0fnu)
    scale_MQ = quant.e8m0_to_float(scale).repeat_interleave(ENTRY_BLOCK, dim=1)[:, :split]
    return torch.cat([q_MQ * scale_MQ, rotary_MR.to(torch.float32)], dim=1)


@torch.no_grad()
def pack_index(key_MI: Tensor) -> Tensor:
    """See dsv4.kernels.rows.pack_index."""
    dim = key_MI.shape[1]
    key_MK = F.pad(key_MI.to(torch.float32), (0, -dim % INDEX_BLOCK))
    packed, scale = quant.quantize_fp4(quant.simulate_fp4(key_MK, INDEX_BLOCK))  # twice: see pack_entry
    scale = scale.view(torch.uint8)
    broken = (scale == _NAN_SCALE).repeat_interleave(INDEX_BLOCK // 2, dim=1)
    return torch.cat([packed.view(torch.uint8).masked_fill(broken, 0)[:, : dim // 2], scale], dim=1)


def unpack_index(rows_MB: Tensor, dim: int) -> Tensor:
    """See dsv4.kernels.rows.unpack_index; float32."""
    value_MI = quant.packed_fp4_to_float(rows_MB[:, : dim // 2].contiguous().view(torch.int8))
    scale = rows_MB[:, dim // 2 :].contiguous().view(torch.float8_e8m0fnu)
    return value_MI * quant.e8m0_to_float(scale).repeat_interleave(INDEX_BLOCK, dim=1)[:, :dim]
