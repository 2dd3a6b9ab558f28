"""The loss a chunk of rows at a time, gradients by hand: d logits = (softmax - one-hot of the target) * row weight.

T rows, D hidden size, V vocabulary, R rows of a chunk.
"""

from typing import Any

import torch
from torch import Tensor

from dsv4.kernels.vocab_loss import cpu


def _logits(x_RD: Tensor, weight_VD: Tensor) -> Tensor:
    return x_RD @ weight_VD.T


def _spread(logits_RV: Tensor, target_R: Tensor, row_weight_R: Tensor, log_sum_R: Tensor) -> Tensor:
    """Gradient of sum(row_weight * loss) by the logits, in their memory."""
    grad_RV = logits_RV.sub_(log_sum_R[:, None]).exp_()
    grad_RV[torch.arange(len(target_R), device=target_R.device), target_R] -= 1
    return grad_RV.mul_(row_weight_R[:, None])


class _Loss(torch.autograd.Function):
    """Both gradients are ready after the forward pass, up to the factor that comes back."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, row_weight_T: Tensor, chunk: int, native: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        compute = row_weight_T.dtype
        wide_VD = weight_VD.to(compute)
        loss_T, correct_T = x_TD.new_zeros(len(x_TD), dtype=compute), torch.zeros_like(target_T, dtype=torch.bool)
        grad_TD = torch.empty_like(x_TD) if ctx.needs_input_grad[0] else None
        grad_VD = torch.zeros_like(wide_VD) if ctx.needs_input_grad[1] else None
        for at in range(0, len(x_TD), chunk):
            rows = slice(at, at + chunk)
            x_RD, target_R = x_TD[rows].to(compute), target_T[rows]
            logits_RV = _logits(x_RD, wide_VD)
            if native:
                loss_T[rows], correct_T[rows] = cpu.spread(logits_RV, target_R, row_weight_T[rows])
                grad_RV = logits_RV
            else:
                log_sum_R = logits_RV.logsumexp(dim=1)
                loss_T[rows] = log_sum_R - logits_RV.gather(1, target_R[:, None]).squeeze(1)
                correct_T[rows] = logits_RV.argmax(dim=1) == target_R
                grad_RV = _spread(logits_RV, target_R, row_weight_T[rows], log_sum_R)
            if grad_TD is None and grad_VD is None:
                continue
            if grad_TD is not None:
                grad_TD[rows] = grad_RV @ wide_VD
            if grad_VD is not None:
                grad_VD.addmm_(grad_RV.T, x_RD)
        ctx.save_for_backward(grad_TD, None if grad_VD is None else grad_VD.to(weight_VD.dtype))
        ctx.mark_non_differentiable(loss_T, correct_T)
        loss = (loss_T * row_weight_T).masked_fill(row_weight_T == 0, 0).sum()
        return loss, loss_T, correct_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore
        grads = [None if kept is None else kept * grad.to(kept.dtype) for kept in ctx.saved_tensors]
        return *grads, None, None, None, None


class _RowLosses(torch.autograd.Function):
    """Keeps one number per row and computes the logits again."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, chunk: int) -> Tensor:
        compute = torch.promote_types(x_TD.dtype, torch.float32)
        wide_VD = weight_VD.to(compute)
        log_sum_T, picked_T = (x_TD.new_empty(len(x_TD), dtype=compute) for _ in range(2))
        for at in range(0, len(x_TD), chunk):
            rows = slice(at, at + chunk)
            logits_RV = _logits(x_TD[rows].to(compute), wide_VD)
            log_sum_T[rows] = logits_RV.logsumexp(dim=1)
            picked_T[rows] = logits_RV.gather(1, target_T[rows, None]).squeeze(1)
        ctx.chunk = chunk
        ctx.save_for_backward(x_TD, weight_VD, target_T, log_sum_T)
        return log_sum_T - picked_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore
        x_TD, weight_VD, target_T, log_sum_T = ctx.saved_tensors
        wide_VD = weight_VD.to(grad_T.dtype)
        grad_TD, grad_VD = torch.empty_like(x_TD), torch.zeros_like(wide_VD)
        for at in range(0, len(x_TD), ctx.chunk):
            rows = slice(at, at + ctx.chunk)
            x_RD = x_TD[rows].to(grad_T.dtype)
            grad_RV = _spread(_logits(x_RD, wide_VD), target_T[rows], grad_T[rows], log_sum_T[rows])
            grad_TD[rows] = grad_RV @ wide_VD
            grad_VD.addmm_(grad_RV.T, x_RD)
        return grad_TD, grad_VD.to(weight_VD.dtype), None, None


def vocab_loss(
    x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, row_weight_T: Tensor, chunk: int, native: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """See dsv4.kernels.vocab_loss.vocab_loss; row_weight_T is already divided by the total. `native`: what happens to
    logits happens in native code."""
    return _Loss.apply(x_TD, weight_VD, target_T, row_weight_T, chunk, native)  # pyrefly: ignore


def row_losses(x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, chunk: int) -> Tensor:
    """See dsv4.kernels.vocab_loss.row_losses."""
    return _RowLosses.apply(x_TD, weight_VD, target_T, chunk)  # pyrefly: ignore
