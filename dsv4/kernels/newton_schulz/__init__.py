"""Orthogonalisation of update matrices by the hybrid Newton-Schulz iteration (report 2.4, eq. 28).

Legend: N matrices of one shape, n rows, m columns.
"""

from collections.abc import Sequence

from torch import Tensor, dtype, float32, int16

from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.newton_schulz import native, reference, torch

Coefficients = tuple[float, float, float]

FAST: Coefficients = (3.4445, -4.7750, 2.0315)  # grows small singular values quickly, overshoots around 1
STABLE: Coefficients = (2.0, -1.5, 0.5)  # has a fixed point of slope 0 at 1
HYBRID: tuple[Coefficients, ...] = (FAST,) * 8 + (STABLE,) * 2

__all__ = ["FAST", "HYBRID", "STABLE", "Coefficients", "orthogonalize"]


def orthogonalize(
    x_Nnm: Tensor,
    steps: Sequence[Coefficients] = HYBRID,
    *,
    dtype: dtype = float32,
    impl: str | None = None,
) -> Tensor:
    """Each matrix with its singular values moved to 1 (within 1 % after the hybrid's ten steps), in x's dtype.

    Starts from M / ||M||_F; each step is M <- a M + b (M M^T) M + c (M M^T)^2 M. `dtype` is what the products compute
    in: a float type, or int16, where rows and columns are rounded relative to their norms and sums are exact.
    Directions with singular values below about 1e-5 of the norm stay short. A norm below 1e-15 counts as 1e-15, so that
    a momentum that fades without gradients fades out; a zero matrix stays zero. Does not modify x. Raises ValueError
    unless x has three dimensions, and for another dtype.
    """
    if not (dtype.is_floating_point or dtype == int16):
        raise ValueError(f"orthogonalize: dtype must be a float type or int16, got {dtype}")
    if x_Nnm.dim() != 3:
        raise ValueError(f"orthogonalize: x must be [N, n, m], got {list(x_Nnm.shape)}")
    return dispatch("orthogonalize", impl, _ORTHOGONALIZE, x_Nnm, steps, dtype)


_ORTHOGONALIZE = (
    Implementation("native", native.orthogonalize, native.takes),
    Implementation("torch", torch.orthogonalize, differentiable=torch.orthogonalize),
    Implementation("reference", reference.orthogonalize, differentiable=reference.orthogonalize),
)
