"""The loss from all logits at once.

Legend: T tokens, D hidden size, V vocabulary, K choices per token, N finished entries.
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


def row_logprobs(
    x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, kept_TK: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """See dsv4.kernels.vocab_loss.row_logprobs."""
    logits_TV = _logits(x_TD, weight_VD)
    if kept_TK is not None:
        logits_TV = logits_TV.masked_fill(~kept_mask(kept_TK, logits_TV.shape[1]), float("-inf"))
    log_TV = logits_TV.log_softmax(dim=1)
    entropy_T = -(log_TV.exp() * log_TV).masked_fill(log_TV.isinf(), 0).sum(dim=1)
    return log_TV.gather(1, target_T[:, None]).squeeze(1), entropy_T.detach()


def kept_mask(kept_TK: Tensor, vocabulary: int) -> Tensor:
    """Which ids each row keeps, bool [T, V]."""
    mask_TV = (kept_TK < 0).all(dim=1, keepdim=True).repeat(1, vocabulary)
    row_N, choice_N = (kept_TK >= 0).nonzero(as_tuple=True)
    mask_TV[row_N, kept_TK[row_N, choice_N].long()] = True
    return mask_TV
