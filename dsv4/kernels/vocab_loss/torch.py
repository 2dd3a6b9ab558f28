"""The loss a chunk of rows at a time, gradients by hand: d logits = (softmax - one-hot of the target) * row weight.

Legend: T tokens, Q tokens of a block, D hidden size, V vocabulary, K choices per token.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dsv4.kernels.matmul import linear
from dsv4.kernels.vocab_loss.reference import kept_mask

# logits_QV, target_Q, row_weight_Q -> the loss of each row, whether its target has the largest logit, and the gradient
# of sum(row_weight * loss) by the logits, perhaps in their memory
Spread = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Gradients = tuple[Tensor | None, Tensor | None]


def spread(logits_QV: Tensor, target_Q: Tensor, row_weight_Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `Spread`."""
    log_sum_Q = logits_QV.logsumexp(dim=1)
    loss_Q = log_sum_Q - logits_QV.gather(1, target_Q[:, None]).squeeze(1)
    correct_Q = logits_QV.argmax(dim=1) == target_Q
    return loss_Q, correct_Q, _gradient(logits_QV, target_Q, row_weight_Q, log_sum_Q)


def loss_and_gradients(
    x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, row_weight_T: Tensor, chunk: int, spread: Spread = spread
) -> tuple[Tensor | None, ...]:
    """The results of `reference.vocab_loss`, then the gradients of x and of the weight by the loss; None for one that
    does not require any. row_weight_T is already divided by the total."""
    compute = row_weight_T.dtype
    wide_VD = weight_VD.to(compute)
    loss_T, correct_T = x_TD.new_zeros(len(x_TD), dtype=compute), torch.zeros_like(target_T, dtype=torch.bool)
    grad_TD = torch.empty_like(x_TD) if x_TD.requires_grad else None
    grad_VD = torch.zeros_like(wide_VD) if weight_VD.requires_grad else None
    for at in range(0, len(x_TD), chunk):
        rows = slice(at, at + chunk)
        x_QD = x_TD[rows].to(compute)
        loss_T[rows], correct_T[rows], grad_QV = spread(x_QD @ wide_VD.T, target_T[rows], row_weight_T[rows])
        if grad_TD is not None:
            grad_TD[rows] = grad_QV @ wide_VD
        if grad_VD is not None:
            grad_VD.addmm_(grad_QV.T, x_QD)
    loss = (loss_T * row_weight_T).masked_fill(row_weight_T == 0, 0).sum()
    return loss, loss_T, correct_T, grad_TD, None if grad_VD is None else grad_VD.to(weight_VD.dtype)


def loss_alone(
    x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, row_weight_T: Tensor, chunk: int, spread: Spread = spread
) -> tuple[Tensor | None, ...]:
    """The same without gradients."""
    return loss_and_gradients(x_TD.detach(), weight_VD.detach(), target_T, row_weight_T, chunk, spread)[:3]


def backward(gradients: tuple[Tensor, ...], kept: Sequence[Tensor | None], *_: object) -> Gradients:
    """Both gradients are ready after the forward pass, up to the factor that comes back."""
    grad_TD, grad_VD = (None if ready is None else ready * gradients[0].to(ready.dtype) for ready in kept)
    return grad_TD, grad_VD


def row_logprobs(
    x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, kept_TK: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of `reference.row_logprobs`, and the logarithm of the sum that the backward pass needs."""
    compute = torch.promote_types(x_TD.dtype, torch.float32)
    logprob_T, entropy_T, log_sum_T = (x_TD.new_empty(len(x_TD), dtype=compute) for _ in range(3))
    for at in range(0, len(x_TD), chunk):
        rows = slice(at, at + chunk)
        logits_QV = linear(x_TD[rows].to(compute), weight_VD)
        if kept_TK is not None:
            logits_QV.masked_fill_(~kept_mask(kept_TK[rows], len(weight_VD)), float("-inf"))
        log_QV = logits_QV.log_softmax(dim=1)
        logprob_T[rows] = log_QV.gather(1, target_T[rows, None]).squeeze(1)
        log_sum_T[rows] = logits_QV.logsumexp(dim=1)
        entropy_T[rows] = -(log_QV.exp() * log_QV.masked_fill_(log_QV.isinf(), 0)).sum(dim=1)
    return logprob_T, entropy_T, log_sum_T


def row_logprobs_backward(
    gradients: tuple[Tensor, ...],
    kept: Sequence[Tensor],
    x_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    kept_TK: Tensor | None,
    chunk: int,
) -> Gradients:
    """Gradients of x and of the weight; the logits are computed again."""
    grad_T, (log_sum_T,) = gradients[0], kept
    wide_VD = weight_VD.to(grad_T.dtype)
    grad_TD, grad_VD = torch.empty_like(x_TD), torch.zeros_like(wide_VD)
    for at in range(0, len(x_TD), chunk):
        rows = slice(at, at + chunk)
        x_QD, logits_QV = x_TD[rows].to(grad_T.dtype), x_TD[rows].to(grad_T.dtype) @ wide_VD.T
        lost_Q = torch.zeros_like(target_T[rows], dtype=torch.bool)
        if kept_TK is not None:
            mask_QV = kept_mask(kept_TK[rows], len(weight_VD))
            logits_QV.masked_fill_(~mask_QV, float("-inf"))
            lost_Q = ~mask_QV.gather(1, target_T[rows, None]).squeeze(1)
        weight_Q = -grad_T[rows].masked_fill(lost_Q, 0)
        grad_QV = _gradient(logits_QV, target_T[rows], weight_Q, log_sum_T[rows])
        grad_TD[rows] = grad_QV @ wide_VD
        grad_VD.addmm_(grad_QV.T, x_QD)
    return grad_TD, grad_VD.to(weight_VD.dtype)


def _gradient(logits_QV: Tensor, target_Q: Tensor, row_weight_Q: Tensor, log_sum_Q: Tensor) -> Tensor:
    """Gradient of sum(row_weight * loss) by the logits, in their memory."""
    grad_QV = logits_QV.sub_(log_sum_Q[:, None]).exp_()
    grad_QV[torch.arange(len(target_Q), device=target_Q.device), target_Q] -= 1
    return grad_QV.mul_(row_weight_Q[:, None])
