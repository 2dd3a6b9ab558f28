"""Hyper-connections around a sub-layer, and the collapse before the head (report 2.2).

T tokens, S streams, D hidden size, E = S * D, X = (2 + S) * S mixes.
"""

from torch import Tensor

from dsv4.config import ModelConfig
from dsv4.kernels import hyper_connection as kernel


def enter(
    x_TSD: Tensor, fn_XE: Tensor, scale_3: Tensor, base_X: Tensor, config: ModelConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """The sub-layer's input y_TD = A X, and (post_TS, comb_TSS) for `kernel.combine` afterwards (eqs 1-8)."""
    mixes_TX = kernel.mix(x_TSD, fn_XE, config.rms_norm_eps)
    pre_TS, post_TS, comb_TSS = kernel.split_sinkhorn(
        mixes_TX, scale_3, base_X, config.hc_mult, config.hc_sinkhorn_iters, config.hc_eps
    )
    return kernel.collapse(x_TSD, pre_TS), post_TS, comb_TSS


def collapse_head(x_TSD: Tensor, fn_SE: Tensor, scale_1: Tensor, base_S: Tensor, config: ModelConfig) -> Tensor:
    """The one stream that goes to the final norm, [T, D]."""
    mixes_TS = kernel.mix(x_TSD, fn_SE, config.rms_norm_eps)
    return kernel.collapse(x_TSD, (mixes_TS * scale_1 + base_S).sigmoid() + config.hc_eps)
