"""RMSNorm over the last dimension, with and without weight.

Legend: D normalised features.
"""

from torch import Tensor

from dsv4.kernels.autograd import node
from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.norm import native, reference, torch

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight_D: Tensor | None, eps: float, impl: str | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dim of x [..., D], in x's shape and dtype.

    With a weight: float32 inside, one rounding. Without: every operation in x's own dtype, as released for query heads.
    """
    return dispatch("rms_norm", impl, _RMS_NORM, x, weight_D, eps)


_RMS_NORM = (
    Implementation("native", native.rms_norm, native.takes, node(native.rms_norm, native.backward)),
    Implementation("torch", reference.rms_norm, differentiable=node(reference.rms_norm, torch.backward)),
    Implementation("reference", reference.rms_norm, differentiable=reference.rms_norm),
)
