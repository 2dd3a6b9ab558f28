"""Sparse attention written as the definition: list every query's rows, gather them, one softmax.

T queries, H heads, C entry dim, M buffer rows, R rows read per query.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dsv4.kernels.sparse_attention import KeySet


def rows_read(keys: "KeySet") -> Tensor:
    """The rows each query reads, rows_TR int64, -1 where there is none."""
    first_T1, last_T1 = keys.window_T2.split(1, dim=1)
    width = int((last_T1 - first_T1).max())
    window_TR = first_T1 + torch.arange(width, device=first_T1.device)
    parts = [torch.where(window_TR < last_T1, window_TR, -1)]
    if keys.prefix_T is not None and keys.longest_prefix:
        assert keys.pages is not None
        entry_R = torch.arange(keys.longest_prefix, device=first_T1.device)
        entry_TR = torch.where(entry_R < keys.prefix_T[:, None], entry_R, -1)
        parts.append(keys.pages.rows(entry_TR))
    if keys.chosen_TK is not None:
        parts.append(keys.chosen_TK)
    return torch.cat(parts, dim=1)


def sparse_attention(q_THC: Tensor, kv_MC: Tensor, keys: "KeySet", sink_H: Tensor, scale: float) -> Tensor:
    """See dsv4.kernels.sparse_attention.sparse_attention. Computes in fp32 (fp64 for fp64 inputs)."""
    compute = torch.promote_types(q_THC.dtype, torch.float32)
    rows_TR = rows_read(keys)
    kv_TRC = kv_MC[rows_TR.clamp(min=0)].to(compute)
    score_THR = torch.einsum("thc,trc->thr", q_THC.to(compute), kv_TRC) * scale
    score_THR = score_THR.masked_fill((rows_TR < 0)[:, None, :], float("-inf"))
    sink_THR = sink_H.to(compute)[None, :, None].expand(q_THC.shape[0], -1, 1)
    weight_THR = torch.cat([score_THR, sink_THR], dim=-1).softmax(dim=-1)[..., :-1]
    # NOTE: a masked row may hold anything, NaN included: zero times NaN must not reach the sum.
    kv_TRC = kv_TRC.masked_fill((rows_TR < 0)[:, :, None], 0)
    return torch.einsum("thr,trc->thc", weight_THR, kv_TRC).to(q_THC.dtype)
