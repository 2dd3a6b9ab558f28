"""Partial rotary embedding in plain torch.

Legend: T tokens, C head dim, P frequency pairs.
"""

import torch
from torch import Tensor


def apply_rope(x: Tensor, rotation_2TP: Tensor, inverse: bool) -> Tensor:
    """See dsv4.kernels.rope.apply_rope."""
    pairs = rotation_2TP.shape[-1]
    compute = torch.promote_types(x.dtype, torch.float32)
    cos, sin = rotation_2TP.to(compute)
    if inverse:
        sin = -sin
    middle = (1,) * (x.dim() - 2)
    cos, sin = cos.view(-1, *middle, pairs), sin.view(-1, *middle, pairs)
    rest, turned = x[..., : -2 * pairs], x[..., -2 * pairs :]
    even, odd = turned.to(compute).unflatten(-1, (pairs, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return torch.cat([rest, turned.to(x.dtype)], dim=-1)
