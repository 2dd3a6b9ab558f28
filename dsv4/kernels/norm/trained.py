"""RMSNorm for training: one node, gradients by hand.

N rows, D features.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dsv4.kernels.norm import reference


def rms_norm(
    x: Tensor, weight_D: Tensor | None, eps: float, forward: Callable[..., Tensor] = reference.rms_norm
) -> Tensor:
    """See dsv4.kernels.norm.rms_norm. `forward` computes the result, with the same arguments."""
    return _RMSNorm.apply(x, weight_D, eps, forward)  # pyrefly: ignore


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor | None, eps: float, forward: Callable[..., Tensor]) -> Tensor:
        ctx.save_for_backward(x, weight_D)
        ctx.eps = eps
        return forward(x, weight_D, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore
        x, weight_D = ctx.saved_tensors
        compute = torch.promote_types(x.dtype, torch.float32)
        dim = x.shape[-1]
        x_ND, g_ND = x.reshape(-1, dim).to(compute), grad.reshape(-1, dim).to(compute)
        square_N1 = torch.linalg.vector_norm(x_ND, dim=1, keepdim=True).square_()
        r_N1 = torch.rsqrt(square_N1 / dim + ctx.eps)
        normed_ND = x_ND * r_N1
        d_weight = None
        if weight_D is not None:
            d_weight = (g_ND * normed_ND).sum(dim=0).to(weight_D.dtype)
            g_ND = g_ND * weight_D.to(compute)
        pull_N1 = (g_ND * normed_ND).sum(dim=1, keepdim=True).div_(-dim)
        d_x_ND = torch.addcmul(g_ND, normed_ND, pull_N1).mul_(r_N1)
        return d_x_ND.view(x.shape).to(x.dtype), d_weight, None, None
