"""The loss from all logits at once.

Legend: T tokens, D hidden size, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def _logits(x_TD: Tensor, weight_VD: Tensor) -> Tensor:
    compute = torch.promote_types(x_TD.dtype, torch.float32)
    return x_TD.to(compute) @ weight_VD.to(compute).T


def vocab_loss(
    x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, row_weight_T: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See dsv4.kernels.vocab_loss.vocab_loss; row_weight_T is already divided by the total."""
    logits_TV = _logits(x_TD, weight_VD)
    loss_T = F.cross_entropy(logits_TV, target_T, reduction="none")
    loss = (loss_T * row_weight_T).masked_fill(row_weight_T == 0, 0).sum()
    return loss, loss_T.detach(), logits_TV.argmax(dim=1) == target_T


def row_losses(x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, chunk: int) -> Tensor:
    """See dsv4.kernels.vocab_loss.row_losses."""
    return F.cross_entropy(_logits(x_TD, weight_VD), target_T, reduction="none")
