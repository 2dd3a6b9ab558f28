"""RMSNorm in plain torch, gradients by hand.

N rows, D features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def backward(
    gradients: tuple[Tensor], kept: Sequence[Tensor], x: Tensor, weight_D: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of the weight (None without one), given that of the result."""
    compute = torch.promote_types(x.dtype, torch.float32)
    dim = x.shape[-1]
    x_ND, g_ND = x.reshape(-1, dim).to(compute), gradients[0].reshape(-1, dim).to(compute)
    square_N1 = torch.linalg.vector_norm(x_ND, dim=1, keepdim=True).square_()
    r_N1 = torch.rsqrt(square_N1 / dim + eps)
    normed_ND = x_ND * r_N1
    d_weight = None
    if weight_D is not None:
        d_weight = (g_ND * normed_ND).sum(dim=0).to(weight_D.dtype)
        g_ND = g_ND * weight_D.to(compute)
    pull_N1 = (g_ND * normed_ND).sum(dim=1, keepdim=True).div_(-dim)
    d_x_ND = torch.addcmul(g_ND, normed_ND, pull_N1).mul_(r_N1)
    return d_x_ND.view(x.shape).to(x.dtype), d_weight
