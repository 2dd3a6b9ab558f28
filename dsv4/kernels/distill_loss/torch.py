"""The divergence a chunk of rows at a time, gradients by hand.

With c_v what a divergence counts for the probability p_v, the gradient by the logits is p_v (c_v - sum p c): c is
log(p / q) for "reverse", (1 - beta) log(p / m) for "jsd". For "forward" the gradient is p_v - q_v.

Legend: T tokens, Q tokens of a block, D hidden size, V vocabulary, K choices per token.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dsv4.kernels.distill_loss import Divergence


def loss_and_gradients(
    x_TD: Tensor,
    weight_VD: Tensor,
    teacher_TD: Tensor,
    teacher_VD: Tensor,
    row_weight_T: Tensor,
    divergence: "Divergence",
    chunk: int,
) -> tuple[Tensor | None, ...]:
    """The results of `reference.distill_loss`, then the gradients of x and of the student's head by the loss; None for
    one that does not require any. row_weight_T is already divided by the total."""
    compute = row_weight_T.dtype
    wide_VD, teacher_VD = weight_VD.to(compute), teacher_VD.to(compute)
    value_T, entropy_T = (x_TD.new_empty(len(x_TD), dtype=compute) for _ in range(2))
    grad_TD = torch.empty_like(x_TD) if x_TD.requires_grad else None
    grad_VD = torch.zeros_like(wide_VD) if weight_VD.requires_grad else None
    for at in range(0, len(x_TD), chunk):
        rows = slice(at, at + chunk)
        x_QD = x_TD[rows].to(compute)
        log_p_QV = (x_QD @ wide_VD.T).log_softmax(dim=1)
        log_q_QV = (teacher_TD[rows].to(compute) @ teacher_VD.T).log_softmax(dim=1)
        p_QV = log_p_QV.exp()
        entropy_T[rows] = -(p_QV * log_p_QV).sum(dim=1)
        value_T[rows], grad_QV = _spread(p_QV, log_p_QV, log_q_QV, divergence)
        if grad_TD is None and grad_VD is None:
            continue
        grad_QV *= row_weight_T[rows, None]
        if grad_TD is not None:
            grad_TD[rows] = (grad_QV @ wide_VD).to(grad_TD.dtype)
        if grad_VD is not None:
            grad_VD.addmm_(grad_QV.T, x_QD)
    loss = (value_T * row_weight_T).masked_fill(row_weight_T == 0, 0).sum()
    return loss, value_T, entropy_T, grad_TD, None if grad_VD is None else grad_VD.to(weight_VD.dtype)


def loss_alone(
    x_TD: Tensor,
    weight_VD: Tensor,
    teacher_TD: Tensor,
    teacher_VD: Tensor,
    row_weight_T: Tensor,
    divergence: "Divergence",
    chunk: int,
) -> tuple[Tensor | None, ...]:
    """The same without gradients."""
    student = x_TD.detach(), weight_VD.detach()
    return loss_and_gradients(*student, teacher_TD, teacher_VD, row_weight_T, divergence, chunk)[:3]


def _spread(p_QV: Tensor, log_p_QV: Tensor, log_q_QV: Tensor, divergence: "Divergence") -> tuple[Tensor, Tensor]:
    """The divergence of each row, and its gradient by the logits; all three tensors may be overwritten."""
    if divergence.kind == "forward":
        q_QV = log_q_QV.exp()
        value_Q = (log_q_QV.sub_(log_p_QV).mul_(q_QV)).sum(dim=1)
        return value_Q, p_QV.sub_(q_QV)
    if divergence.kind == "jsd":
        beta = divergence.beta
        log_m_QV = torch.logaddexp(log_q_QV + math.log(beta), log_p_QV + math.log1p(-beta))
        own_QV = log_p_QV.sub_(log_m_QV).mul_(1 - beta)
        own_Q = (p_QV * own_QV).sum(dim=1)
        value_Q = own_Q + beta * (log_q_QV.exp() * (log_q_QV - log_m_QV)).sum(dim=1)
        return value_Q, own_QV.sub_(own_Q[:, None]).mul_(p_QV)
    ratio_QV = log_p_QV - log_q_QV
    if not divergence.top_k:
        value_Q = (p_QV * ratio_QV).sum(dim=1)
        return value_Q, ratio_QV.sub_(value_Q[:, None]).mul_(p_QV)
    ids_QK = log_p_QV.topk(min(divergence.top_k, log_p_QV.shape[1]), dim=1).indices
    count_QV = torch.zeros_like(ratio_QV).scatter_(1, ids_QK, ratio_QV.gather(1, ids_QK))
    value_Q = total_Q = (p_QV * count_QV).sum(dim=1)
    if not divergence.detached:
        count_QV.scatter_add_(1, ids_QK, torch.ones_like(ids_QK, dtype=count_QV.dtype))
        total_Q = (p_QV * count_QV).sum(dim=1)
    return value_Q, count_QV.sub_(total_Q[:, None]).mul_(p_QV)
