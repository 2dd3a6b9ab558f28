"""Hyper-connections around a sub-layer, and the collapse before the head (report 2.2).

Legend: T tokens, S streams, D hidden size, Z = S * D, X = (2 + S) * S mixes.
"""

from torch import Tensor

from dsv4.config import ModelConfig
from dsv4.kernels import hyper_connection as kernel


def enter(
    x_TSD: Tensor, fn_XZ: Tensor, scale_3: Tensor, base_X: Tensor, config: ModelConfig, impl: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The sub-layer's input y_TD = A X, and (post_TS, comb_TSS) for `kernel.combine` afterwards (eqs 1-8)."""
    return kernel.enter(
        x_TSD,
        fn_XZ,
        scale_3,
        base_X,
        iterations=config.hc_sinkhorn_iters,
        eps=config.hc_eps,
        norm_eps=config.rms_norm_eps,
        impl=impl,
    )


def collapse_head(
    x_TSD: Tensor, fn_SZ: Tensor, scale_1: Tensor, base_S: Tensor, config: ModelConfig, impl: str | None = None
) -> Tensor:
    """The one stream that goes to the final norm, [T, D]."""
    eps, norm_eps = config.hc_eps, config.rms_norm_eps
    return kernel.collapse_head(x_TSD, fn_SZ, scale_1, base_S, eps=eps, norm_eps=norm_eps, impl=impl)
