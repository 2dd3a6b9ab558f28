"""Rows of logits become their losses and gradients in one native pass.

R rows, V vocabulary.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dsv4.kernels import native


@cache
def _function() -> Callable[..., None]:
    return native.function("dsv4_vocab_rows", [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 2 + [ctypes.c_int])


def usable(x_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> bool:
    """Whether the native kernel takes these rows' logits: computed in float32, on the CPU."""
    narrow = x_TD.dtype in (torch.float32, torch.bfloat16) and weight_VD.dtype in (torch.float32, torch.bfloat16)
    return narrow and target_T.dtype == torch.int64 and native.reachable(x_TD, weight_VD, target_T)


def spread(logits_RV: Tensor, target_R: Tensor, row_weight_R: Tensor) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[target] of each row, and whether the target has the largest logit. logits_RV, contiguous, is
    overwritten with the gradient of sum(row_weight * loss). Raises IndexError for a target outside the vocabulary."""
    rows, size = logits_RV.shape
    if rows and not 0 <= int(target_R.min()) <= int(target_R.max()) < size:
        raise IndexError(f"vocab_loss: targets must be in 0..{size - 1}")
    target_R, row_weight_R = target_R.contiguous(), row_weight_R.to(torch.float32).contiguous()
    loss_R, right_R = torch.empty(rows, dtype=torch.float32), torch.empty(rows, dtype=torch.bool)
    tensors = (logits_RV, target_R, row_weight_R, loss_R, right_R)
    _function()(*(native.pointer(t) for t in tensors), rows, size, torch.get_num_threads())
    return loss_R, right_R
