"""Rows of logits become their losses and gradients in one native pass.

Legend: Q tokens of a block, V vocabulary.
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


def takes(x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, *_: object) -> str | None:
    """Why the native kernel does not take these rows' logits, which are computed in float32; None if it does."""
    narrow = (torch.float32, torch.bfloat16)
    return (
        native.needs(x_TD, narrow, "x")
        or native.needs(weight_VD, narrow, "the head")
        or native.needs(target_T, (torch.int64,), "the target")
    )


def spread(logits_QV: Tensor, target_Q: Tensor, row_weight_Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `dsv4.kernels.vocab_loss.torch.Spread`. logits_QV, contiguous, becomes the gradient. Raises IndexError for a
    target outside the vocabulary."""
    rows, size = logits_QV.shape
    if rows and not 0 <= int(target_Q.min()) <= int(target_Q.max()) < size:
        raise IndexError(f"vocab_loss: targets must be in 0..{size - 1}")
    target_Q, row_weight_Q = target_Q.contiguous(), row_weight_Q.to(torch.float32).contiguous()
    loss_Q, right_Q = torch.empty(rows, dtype=torch.float32), torch.empty(rows, dtype=torch.bool)
    tensors = (logits_QV, target_Q, row_weight_Q, loss_Q, right_Q)
    _function()(*(native.pointer(t) for t in tensors), rows, size, torch.get_num_threads())
    return loss_Q, right_Q, logits_QV
