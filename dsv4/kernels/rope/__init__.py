"""Partial rotary embedding on the last dimensions of queries, keys and outputs (report 2.3).

T tokens, H heads, C entry dim, R rotary dims (pairs of neighbours), P = R / 2 frequencies.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsv4.kernels.backend import choose
from dsv4.kernels.rope import cpu

if TYPE_CHECKING:
    from dsv4.config import Yarn


def frequencies(rope_dim: int, theta: float, yarn: "Yarn | None" = None) -> Tensor:
    """Angular frequencies f_P [rope_dim / 2] in fp32, radians per position.

    With `yarn`, low frequencies are divided by the factor and high ones kept, with a linear ramp between the
    dimensions that turn `beta_slow` and `beta_fast` times within the original context. There is no attention factor.
    """
    exponent_P = torch.arange(0, rope_dim, 2, dtype=torch.float32) / rope_dim
    f_P = 1.0 / theta**exponent_P
    if yarn is None:
        return f_P

    def dimension_of(turns: float) -> float:
        return (
            rope_dim * math.log(yarn.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))
        )

    low = max(math.floor(dimension_of(yarn.beta_fast)), 0)
    high = min(math.ceil(dimension_of(yarn.beta_slow)), rope_dim - 1)
    ramp_P = (torch.arange(rope_dim // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)
    keep_P = 1.0 - ramp_P.clamp(0, 1)
    return f_P / yarn.factor * (1 - keep_P) + f_P * keep_P


def rotation(f_P: Tensor, positions_T: Tensor) -> Tensor:
    """cos and sin of every position, [2, T, P] fp32. Angles are products in fp32, as released."""
    angle_TP = positions_T.to(torch.float32)[:, None] * f_P
    return torch.stack([angle_TP.cos(), angle_TP.sin()])


def apply_rope(x: Tensor, rotation_2TP: Tensor, *, inverse: bool = False, impl: str | None = None) -> Tensor:
    """Rotate the last 2P dims of x [T, ..., C]; the others pass through. Returns x's dtype.

    `inverse` turns by -position: what the attention output needs, because keys double as values (report 2.3).
    """
    if impl is None and torch.is_grad_enabled() and cpu.trainable(x, rotation_2TP):
        return cpu.trained(x, rotation_2TP, inverse)
    return choose("apply_rope", impl, _APPLY_ROPE, native=cpu.usable(x, rotation_2TP))(x, rotation_2TP, inverse)


def _reference(x: Tensor, rotation_2TP: Tensor, inverse: bool) -> Tensor:
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


_APPLY_ROPE = {"cpu": cpu.apply_rope, "reference": _reference}
