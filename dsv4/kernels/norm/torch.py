"""RMSNorm in plain torch, gradients by hand.

Legend: T tokens, D normalised features.
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
    x_TD, g_TD = x.reshape(-1, dim).to(compute), gradients[0].reshape(-1, dim).to(compute)
    square_N1 = torch.linalg.vector_norm(x_TD, dim=1, keepdim=True).square_()
    r_N1 = torch.rsqrt(square_N1 / dim + eps)
    normed_TD = x_TD * r_N1
    d_weight = None
    if weight_D is not None:
        d_weight = (g_TD * normed_TD).sum(dim=0).to(weight_D.dtype)
        g_TD = g_TD * weight_D.to(compute)
    pull_N1 = (g_TD * normed_TD).sum(dim=1, keepdim=True).div_(-dim)
    d_x_TD = torch.addcmul(g_TD, normed_TD, pull_N1).mul_(r_N1)
    return d_x_TD.view(x.shape).to(x.dtype), d_weight
