"""Manifold-constrained hyper-connections: four residual streams feed a sub-layer and receive its output
(report 2.2, eqs 1-8).

Legend: T tokens, S streams, D hidden size, Z = S * D, X = (2 + S) * S mixes,
in the order [pre S | post S | comb S*S].
"""

from torch import Tensor

from dsv4.kernels.autograd import node
from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.hyper_connection import native, reference, torch


def split_sinkhorn(
    mixes_TX: Tensor, scale_3: Tensor, base_X: Tensor, streams: int, iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """pre_TS (A of eq. 6), post_TS (C of eq. 7), comb_TSS (B^T of eq. 8, rows and columns summing to 1), fp32."""
    return reference.split_sinkhorn(mixes_TX, scale_3, base_X, streams, iterations, eps)


def enter(
    x_TSD: Tensor,
    fn_XZ: Tensor,
    scale_3: Tensor,
    base_X: Tensor,
    *,
    iterations: int,
    eps: float,
    norm_eps: float,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The input of a sub-layer y_TD = A X in x's dtype, and post_TS and comb_TSS for `combine`.

    The mixes are a projection of the RMS-normalised streams. "native" is one call, and a token's results depend on that
    token alone.
    """
    return dispatch("enter", impl, _ENTER, x_TSD, fn_XZ, scale_3, base_X, iterations, eps, norm_eps)


def collapse_head(
    x_TSD: Tensor,
    fn_SZ: Tensor,
    scale_1: Tensor,
    base_S: Tensor,
    *,
    eps: float,
    norm_eps: float,
    impl: str | None = None,
) -> Tensor:
    """The one stream before the head, y_TD in x's dtype: collapsed with sigmoid(mixes_TS * scale + base) + eps."""
    return dispatch("collapse_head", impl, _COLLAPSE_HEAD, x_TSD, fn_SZ, scale_1, base_S, eps, norm_eps)


def combine(y_TD: Tensor, x_TSD: Tensor, post_TS: Tensor, comb_TSS: Tensor, impl: str | None = None) -> Tensor:
    """New streams: out[t, k] = post[t, k] y[t] + sum_j comb[t, j, k] x[t, j], in x's dtype (fp32 inside)."""
    return dispatch("combine", impl, _COMBINE, y_TD, x_TSD, post_TS, comb_TSS)


_ENTER = (
    Implementation("native", native.enter, native.takes, node(native.enter, native.enter_backward)),
    Implementation("torch", torch.enter, differentiable=node(torch.enter, torch.enter_backward)),
    Implementation("reference", reference.enter, differentiable=reference.enter),
)
_COLLAPSE_HEAD = (
    Implementation(
        "native", native.collapse_head, native.takes, node(native.collapse_head, native.collapse_head_backward)
    ),
    Implementation("reference", reference.collapse_head, differentiable=reference.collapse_head),
)
_COMBINE = (
    Implementation("native", native.combine, native.takes_combine, node(native.combine, native.combine_backward)),
    Implementation("torch", reference.combine, differentiable=node(reference.combine, torch.combine_backward)),
    Implementation("reference", reference.combine, differentiable=reference.combine),
)
