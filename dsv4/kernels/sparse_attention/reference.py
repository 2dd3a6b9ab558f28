"""The definition of sparse attention: list the rows of each query, gather them, and take one softmax.

Legend: T tokens, H heads, C head dim, R gathered rows (of a query), W window rows, M entry rows, K choices per token.
"""

import torch
from torch import Tensor

from dsv4.kernels.rows import unpack_entry
from dsv4.kernels.sparse_attention.keys import ChosenEntries, KeySet, Prefix


def window_rows(keys: KeySet) -> Tensor:
    """The window rows each query reads, rows_TR int64, -1 where there is none."""
    first_T1, last_T1 = keys.window_T2.split(1, dim=1)
    width = int((last_T1 - first_T1).max())
    row_TR = first_T1 + torch.arange(width, device=first_T1.device)
    return torch.where(row_TR < last_T1, row_TR, -1)


def entry_rows(keys: KeySet) -> Tensor:
    """The entry rows each query reads, rows_TR int64, -1 where there is none."""
    match keys.entries:
        case Prefix(visible_T, pages, longest):
            entry_R = torch.arange(longest, device=visible_T.device)
            return pages.rows(torch.where(entry_R < visible_T[:, None], entry_R, -1))
        case ChosenEntries(rows_TK):
            return rows_TK
        case None:
            return keys.window_T2.new_empty(keys.window_T2.shape[0], 0)


def take(buffer_MC: Tensor, rows: Tensor, dim: int, rope_dim: int) -> Tensor:
    """Rows of the buffer, rows.shape + [C]; packed ones as float32. A row number outside the buffer gives an arbitrary
    row."""
    rows = rows.clamp(0, buffer_MC.shape[0] - 1)
    taken = buffer_MC.index_select(0, rows.flatten())
    if taken.dtype == torch.uint8:
        taken = unpack_entry(taken, dim, rope_dim)
    return taken.view(*rows.shape, dim)


def _gather(buffer_MC: Tensor, rows_TR: Tensor, dtype: torch.dtype, dim: int, rope_dim: int) -> Tensor:
    # NOTE: an absent row may hold anything, also NaN; it becomes zero before the product.
    return take(buffer_MC, rows_TR, dim, rope_dim).to(dtype).masked_fill((rows_TR < 0)[:, :, None], 0)


def sparse_attention(
    q_THC: Tensor,
    window_WC: Tensor,
    entries_MC: Tensor,
    keys: KeySet,
    sink_H: Tensor,
    scale: float,
    rope_dim: int,
) -> Tensor:
    """See dsv4.kernels.sparse_attention.sparse_attention. Computes in fp32 (fp64 for fp64 inputs)."""
    compute, dim = torch.promote_types(q_THC.dtype, torch.float32), q_THC.shape[2]
    rows_TR = window_rows(keys)
    kv_TRC = _gather(window_WC, rows_TR, compute, dim, 0)
    extra_TR = entry_rows(keys)
    if extra_TR.shape[1] and entries_MC.shape[0]:
        kv_TRC = torch.cat([kv_TRC, _gather(entries_MC, extra_TR, compute, dim, rope_dim)], dim=1)
        rows_TR = torch.cat([rows_TR, extra_TR], dim=1)
    score_THR = torch.einsum("thc,trc->thr", q_THC.to(compute), kv_TRC) * scale
    score_THR = score_THR.masked_fill((rows_TR < 0)[:, None, :], float("-inf"))
    sink_TH1 = sink_H.to(compute)[None, :, None].expand(q_THC.shape[0], -1, 1)
    weight_THR = torch.cat([score_THR, sink_TH1], dim=-1).softmax(dim=-1)[..., :-1]
    return torch.einsum("thr,trc->thc", weight_THR, kv_TRC).to(q_THC.dtype)
