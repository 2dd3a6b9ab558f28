"""RMSNorm for training: one node, gradients by hand.

N rows, D features.
"""

from typing import Any

import torch
from torch import Tensor

from dsv4.kernels.norm import cpu, reference


def rms_norm(x: Tensor, weight_D: Tensor | None, eps: float, native: bool = False) -> Tensor:
    """See dsv4.kernels.norm.rms_norm. `native`: both passes run in native code."""
    return _RMSNorm.apply(x, weight_D, eps, native)  # pyrefly: ignore


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor | None, eps: float, native: bool) -> Tensor:
        ctx.save_for_backward(x, weight_D)
        ctx.eps, ctx.native = eps, native
        return (cpu if native else reference).rms_norm(x, weight_D, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore
        x, weight_D = ctx.saved_tensors
        if ctx.native:
            return *cpu.backward(grad, x, weight_D, ctx.eps), None, None
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
