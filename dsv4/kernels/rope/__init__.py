"""Partial rotary embedding on the last dimensions of queries, keys and outputs (report 2.3).

Legend: T tokens, H heads, C head dim, R rotary dims (pairs of neighbours), P frequency pairs (R / 2).
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsv4.kernels.autograd import node
from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.rope import native, reference

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
    return dispatch("apply_rope", impl, _APPLY_ROPE, x, rotation_2TP, inverse)


_APPLY_ROPE = (
    Implementation("native", native.apply_rope, native.takes, node(native.apply_rope, native.backward)),
    Implementation("reference", reference.apply_rope, differentiable=reference.apply_rope),
)
