"""Manifold-constrained hyper-connections: how four residual streams feed a sub-layer and take its output back
(report 2.2, eqs 1-8).

T tokens, S streams, D hidden size, X = (2 + S) * S mixes in the order [pre S | post S | comb S*S].
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dsv4.kernels.backend import choose
from dsv4.kernels.hyper_connection import cpu, recomputed, reference

Run = Callable[..., Any]


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


def enter(
    x_TSD: Tensor,
    fn_XE: Tensor,
    scale_3: Tensor,
    base_X: Tensor,
    *,
    iterations: int,
    eps: float,
    norm_eps: float,
    norm_D: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The way into a sub-layer: `mix`, `split_sinkhorn` and `collapse`. Returns y_TD in x's dtype, post_TS, comb_TSS.

    With `norm_D` y is also RMS-normalised with that weight and `norm_eps`, after its rounding to x's dtype. "cpu" does
    it all in one call, and a token's results depend on that token alone.
    """
    tensors = (x_TSD, fn_XE, scale_3, base_X, norm_D)
    run = choose("enter", impl, _training(_ENTER, recomputed.enter, impl, *tensors), native=cpu.usable(*tensors))
    return run(x_TSD, fn_XE, scale_3, base_X, iterations, eps, norm_eps, norm_D)


def collapse_head(
    x_TSD: Tensor,
    fn_SE: Tensor,
    scale_1: Tensor,
    base_S: Tensor,
    *,
    eps: float,
    norm_eps: float,
    impl: str | None = None,
) -> Tensor:
    """The one stream before the head, y_TD in x's dtype: collapsed with sigmoid(mixes_TS * scale + base) + eps."""
    tensors = (x_TSD, fn_SE, scale_1, base_S)
    available = _training(_HEAD, recomputed.collapse_head, impl, *tensors)
    run = choose("collapse_head", impl, available, native=cpu.usable(*tensors))
    return run(x_TSD, fn_SE, scale_1, base_S, eps, norm_eps)


def combine(y_TD: Tensor, x_TSD: Tensor, post_TS: Tensor, comb_TSS: Tensor, impl: str | None = None) -> Tensor:
    """New streams: out[t, k] = post[t, k] y[t] + sum_j comb[t, j, k] x[t, j], in x's dtype (fp32 inside)."""
    same, tensors = y_TD.dtype == x_TSD.dtype, (x_TSD, post_TS, comb_TSS)
    available = _training(_COMBINE, recomputed.combine, impl if same else "torch", *tensors)
    return choose("combine", impl, available, native=same and cpu.usable(*tensors))(y_TD, x_TSD, post_TS, comb_TSS)


def _training(
    table: dict[str, Run], run: Run, impl: str | None, x_TSD: Tensor, *others: Tensor | None
) -> dict[str, Run]:
    """The implementations to choose from; with gradients the hand-written ones come first. Native code records none,
    but inside an autograd node it may run."""
    if not torch.is_grad_enabled():
        return table
    native = impl is None and cpu.trainable(x_TSD, *others)
    return {"recomputed": partial(run, native=native), **table}


_SPLIT = {"unrolled": reference.split_sinkhorn_unrolled, "reference": reference.split_sinkhorn}
_ENTER: dict[str, Run] = {"cpu": cpu.enter, "reference": reference.enter}
_HEAD: dict[str, Run] = {"cpu": cpu.collapse_head, "reference": reference.collapse_head}
_COMBINE: dict[str, Run] = {"cpu": cpu.combine, "reference": reference.combine}
