"""The loss a chunk of rows at a time, gradients by hand: d logits = (softmax - one-hot of the target) * row weight.

T rows, D hidden size, V vocabulary, R rows of a chunk.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# logits_RV, target_R, row_weight_R -> the loss of each row, whether its target has the largest logit, and the gradient
# of sum(row_weight * loss) by the logits, perhaps in their memory
Spread = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Gradients = tuple[Tensor | None, Tensor | None]


def spread(logits_RV: Tensor, target_R: Tensor, row_weight_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `Spread`."""
    log_sum_R = logits_RV.logsumexp(dim=1)
    loss_R = log_sum_R - logits_RV.gather(1, target_R[:, None]).squeeze(1)
    correct_R = logits_RV.argmax(dim=1) == target_R
    return loss_R, correct_R, _gradient(logits_RV, target_R, row_weight_R, log_sum_R)


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
        x_RD = x_TD[rows].to(compute)
        loss_T[rows], correct_T[rows], grad_RV = spread(x_RD @ wide_VD.T, target_T[rows], row_weight_T[rows])
        if grad_TD is not None:
            grad_TD[rows] = grad_RV @ wide_VD
        if grad_VD is not None:
            grad_VD.addmm_(grad_RV.T, x_RD)
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


def row_losses(x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """The loss of each row, and the logarithm of the sum that its backward pass needs."""
    compute = torch.promote_types(x_TD.dtype, torch.float32)
    wide_VD = weight_VD.to(compute)
    log_sum_T, picked_T = (x_TD.new_empty(len(x_TD), dtype=compute) for _ in range(2))
    for at in range(0, len(x_TD), chunk):
        rows = slice(at, at + chunk)
        logits_RV = x_TD[rows].to(compute) @ wide_VD.T
        log_sum_T[rows] = logits_RV.logsumexp(dim=1)
        picked_T[rows] = logits_RV.gather(1, target_T[rows, None]).squeeze(1)
    return log_sum_T - picked_T, log_sum_T


def row_losses_backward(
    gradients: tuple[Tensor], kept: Sequence[Tensor], x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, chunk: int
) -> Gradients:
    """Gradients of x and of the weight; the logits are computed again."""
    (grad_T,), (log_sum_T,) = gradients, kept
    wide_VD = weight_VD.to(grad_T.dtype)
    grad_TD, grad_VD = torch.empty_like(x_TD), torch.zeros_like(wide_VD)
    for at in range(0, len(x_TD), chunk):
        rows = slice(at, at + chunk)
        x_RD = x_TD[rows].to(grad_T.dtype)
        grad_RV = _gradient(x_RD @ wide_VD.T, target_T[rows], grad_T[rows], log_sum_T[rows])
        grad_TD[rows] = grad_RV @ wide_VD
        grad_VD.addmm_(grad_RV.T, x_RD)
    return grad_TD, grad_VD.to(weight_VD.dtype)


def _gradient(logits_RV: Tensor, target_R: Tensor, row_weight_R: Tensor, log_sum_R: Tensor) -> Tensor:
    """Gradient of sum(row_weight * loss) by the logits, in their memory."""
    grad_RV = logits_RV.sub_(log_sum_R[:, None]).exp_()
    grad_RV[torch.arange(len(target_R), device=target_R.device), target_R] -= 1
    return grad_RV.mul_(row_weight_R[:, None])
