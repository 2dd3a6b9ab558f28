"""RMSNorm over the last dimension, with and without weight.

D features.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dsv4.kernels.backend import choose
from dsv4.kernels.norm import cpu, reference, trained

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight_D: Tensor | None, eps: float, impl: str | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dim of x [..., D], in x's shape and dtype.

    With a weight: float32 inside, one rounding. Without: every operation in x's own dtype, as released for query heads.
    """
    available: dict[str, Callable[..., Tensor]] = _RMS_NORM
    if torch.is_grad_enabled():
        # native code records no gradient; inside the node of `trained` it may run all the same
        native = impl is None and cpu.trainable(x, weight_D)
        available = {"trained": partial(trained.rms_norm, native=native), **_RMS_NORM}
    return choose("rms_norm", impl, available, native=cpu.usable(x, weight_D))(x, weight_D, eps)


_RMS_NORM = {"cpu": cpu.rms_norm, "reference": reference.rms_norm}
