"""Manifold-constrained hyper-connections: how four residual streams feed a sub-layer and take its output back
(report 2.2, eqs 1-8).

T tokens, S streams, D hidden size, X = (2 + S) * S mixes in the order [pre S | post S | comb S*S].
"""

from torch import Tensor

from dsv4.kernels.backend import choose
from dsv4.kernels.hyper_connection import reference


def mix(x_TSD: Tensor, fn_XE: Tensor, eps: float) -> Tensor:
    """Projection of RMS-normalised vec(X): mixes_TX fp32, E = S * D (eqs 3-5 before scale and base)."""
    return reference.mix(x_TSD, fn_XE, eps)


def split_sinkhorn(
    mixes_TX: Tensor,
    scale_3: Tensor,
    base_X: Tensor,
    streams: int,
    iterations: int,
    eps: float,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """pre_TS (A of eq. 6), post_TS (C of eq. 7), comb_TSS (B^T of eq. 8, rows and columns summing to 1), fp32."""
    return choose("split_sinkhorn", impl, _SPLIT)(mixes_TX, scale_3, base_X, streams, iterations, eps)


def collapse(x_TSD: Tensor, pre_TS: Tensor) -> Tensor:
    """The sub-layer's input: sum_s pre[t, s] x[t, s], in x's dtype (fp32 inside)."""
    return reference.collapse(x_TSD, pre_TS)


def combine(y_TD: Tensor, x_TSD: Tensor, post_TS: Tensor, comb_TSS: Tensor) -> Tensor:
    """New streams: out[t, k] = post[t, k] y[t] + sum_j comb[t, j, k] x[t, j], in x's dtype (fp32 inside)."""
    return reference.combine(y_TD, x_TSD, post_TS, comb_TSS)


_SPLIT = {"unrolled": reference.split_sinkhorn_unrolled, "reference": reference.split_sinkhorn}
