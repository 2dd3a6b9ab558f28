"""Gated pooling in plain torch.

Legend: R gathered rows, N finished entries, m tokens per entry, W projection width, C head dim.
"""

import torch
from torch import Tensor


def _take(x_RW: Tensor, rows_Nm: Tensor) -> Tensor:
    return x_RW.index_select(0, rows_Nm.flatten()).view(*rows_Nm.shape, x_RW.shape[1])


def pool(kv_RW: Tensor, score_RW: Tensor, own_Nm: Tensor, previous_Nm: Tensor | None) -> Tensor:
    """See dsv4.kernels.compress.pool."""
    if previous_Nm is None:
        weight_NmC = _take(score_RW, own_Nm).softmax(dim=1)
        return (weight_NmC * _take(kv_RW, own_Nm)).sum(dim=1)
    dim = kv_RW.shape[1] // 2
    absent_Nm1 = (previous_Nm < 0)[..., None]
    previous_Nm = previous_Nm.clamp(min=0)
    score = torch.cat(
        [
            _take(score_RW[:, :dim], previous_Nm).masked_fill(absent_Nm1, float("-inf")),
            _take(score_RW[:, dim:], own_Nm),
        ],
        dim=1,
    )
    kv = torch.cat(
        [_take(kv_RW[:, :dim], previous_Nm).masked_fill(absent_Nm1, 0), _take(kv_RW[:, dim:], own_Nm)], dim=1
    )
    return (score.softmax(dim=1) * kv).sum(dim=1)
