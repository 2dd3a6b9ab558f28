"""Hyper-connections for training: gradients by hand, and nothing kept that the inputs do not give again.

The twenty normalisations of the Sinkhorn iteration would otherwise be 39 nodes and 78 saved tensors a connection.

T tokens, S streams, D hidden size, E = S * D, X = (2 + S) * S mixes [pre | post | comb].
"""

from typing import Any

import torch
from torch import Tensor

from dsv4.kernels.hyper_connection import cpu, reference


def enter(
    x_TSD: Tensor,
    fn_XE: Tensor,
    scale_3: Tensor,
    base_X: Tensor,
    iterations: int,
    eps: float,
    norm_eps: float,
    norm_D: Tensor | None,
    native: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See dsv4.kernels.hyper_connection.enter. `native`: both passes run in native code."""
    if norm_D is not None:
        return reference.enter(x_TSD, fn_XE, scale_3, base_X, iterations, eps, norm_eps, norm_D)
    return _Enter.apply(x_TSD, fn_XE, scale_3, base_X, iterations, eps, norm_eps, native)  # pyrefly: ignore


def collapse_head(
    x_TSD: Tensor,
    fn_SE: Tensor,
    scale_1: Tensor,
    base_S: Tensor,
    eps: float,
    norm_eps: float,
    native: bool = False,
) -> Tensor:
    """See dsv4.kernels.hyper_connection.collapse_head. Torch's own gradients unless `native`."""
    if not native:
        return reference.collapse_head(x_TSD, fn_SE, scale_1, base_S, eps, norm_eps)
    return _CollapseHead.apply(x_TSD, fn_SE, scale_1, base_S, eps, norm_eps)  # pyrefly: ignore


def combine(y_TD: Tensor, x_TSD: Tensor, post_TS: Tensor, comb_TSS: Tensor, native: bool = False) -> Tensor:
    """See dsv4.kernels.hyper_connection.combine. `native`: both passes run in native code."""
    return _Combine.apply(y_TD, x_TSD, post_TS, comb_TSS, native)  # pyrefly: ignore


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TSD: Tensor,
        fn_XE: Tensor,
        scale_3: Tensor,
        base_X: Tensor,
        iterations: int,
        eps: float,
        norm_eps: float,
        native: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x_TSD, fn_XE, scale_3, base_X)
        ctx.settings, ctx.native = (iterations, eps, norm_eps), native
        return (cpu if native else reference).enter(x_TSD, fn_XE, scale_3, base_X, iterations, eps, norm_eps, None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyrefly: ignore
        ctx: Any, grad_TD: Tensor, grad_post_TS: Tensor, grad_comb_TSS: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_TSD, fn_XE, scale_3, base_X = ctx.saved_tensors
        iterations, eps, norm_eps = ctx.settings
        if ctx.native:
            grads = (grad_TD, grad_post_TS, grad_comb_TSS)
            return *cpu.enter_backward(x_TSD, fn_XE, scale_3, base_X, grads, *ctx.settings), None, None, None, None
        streams = x_TSD.shape[1]
        parts = [streams, streams, streams * streams]
        x_TE = reference._wide(x_TSD.flatten(1))
        x_TSd, grad_TD = x_TE.view(x_TSD.shape), reference._wide(grad_TD)
        raw_TX = x_TE @ fn_XE.T
        rms_T1 = torch.rsqrt(torch.linalg.vector_norm(x_TE, dim=1, keepdim=True).square() / x_TE.shape[1] + norm_eps)
        mix_TX = raw_TX * rms_T1
        scale_X = torch.repeat_interleave(scale_3, torch.tensor(parts, device=scale_3.device))
        gate_TX = torch.addcmul(base_X, mix_TX, scale_X)
        pre_TS, post_TS, comb = gate_TX.split(parts, dim=1)
        pre_TS, post_TS = pre_TS.sigmoid(), post_TS.sigmoid()
        # y = sum over streams of (pre + eps) x
        d_pre_TS = (x_TSd * grad_TD[:, None]).sum(dim=2) * pre_TS * (1 - pre_TS)
        d_post_TS = grad_post_TS * 2 * post_TS * (1 - post_TS)
        d_comb = _sinkhorn_backward(comb, grad_comb_TSS, iterations, eps)
        d_gate_TX = torch.cat([d_pre_TS, d_post_TS, d_comb], dim=1)
        d_scale_X = (d_gate_TX * mix_TX).sum(dim=0)
        d_scale_3 = torch.stack([part.sum() for part in d_scale_X.split(parts)])
        d_mix_TX = d_gate_TX * scale_X
        d_raw_TX = d_mix_TX * rms_T1
        # rms = (mean x^2 + eps)^-1/2
        pull_T1 = (d_mix_TX * raw_TX).sum(dim=1, keepdim=True) * rms_T1.pow(3) / -x_TE.shape[1]
        d_x_TE = torch.addcmul(d_raw_TX @ fn_XE, x_TE, pull_T1)
        d_x_TSD = d_x_TE.view(x_TSD.shape).addcmul_((pre_TS + eps)[..., None], grad_TD[:, None])
        return d_x_TSD.to(x_TSD.dtype), d_raw_TX.T @ x_TE, d_scale_3, d_gate_TX.sum(dim=0), None, None, None, None


def _sinkhorn_backward(comb: Tensor, grad_TSS: Tensor, iterations: int, eps: float) -> Tensor:
    """Gradient of the doubly stochastic matrices by the gates comb [T, S * S] they start from.

    Tokens last, so that every operation is a long vector. y = x / d with d = sum x + eps has dx = (dy - sum(dy y)) / d.
    """
    streams = grad_TSS.shape[1]
    soft_SST = comb.T.contiguous().view(streams, streams, -1).softmax(dim=1)
    axes = [0] + [1, 0] * (iterations - 1)
    m_SST, saved = soft_SST + eps, []
    for axis in axes:
        inverse = (m_SST.sum(dim=axis, keepdim=True) + eps).reciprocal_()
        m_SST = m_SST * inverse
        saved.append((axis, inverse, m_SST))
    g_SST = grad_TSS.permute(1, 2, 0).contiguous()
    for axis, inverse, y_SST in reversed(saved):
        g_SST = (g_SST - (g_SST * y_SST).sum(dim=axis, keepdim=True)).mul_(inverse)
    g_SST = (g_SST - (g_SST * soft_SST).sum(dim=1, keepdim=True)).mul_(soft_SST)
    return g_SST.flatten(0, 1).T


class _CollapseHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TSD: Tensor, fn_SE: Tensor, scale_1: Tensor, base_S: Tensor, eps: float, norm_eps: float
    ) -> Tensor:
        ctx.save_for_backward(x_TSD, fn_SE, scale_1, base_S)
        ctx.settings = 1, eps, norm_eps
        return cpu.collapse_head(x_TSD, fn_SE, scale_1, base_S, eps, norm_eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore
        x_TSD, fn_SE, scale_1, base_S = ctx.saved_tensors
        grads = (grad_TD, None, None)
        return *cpu.enter_backward(x_TSD, fn_SE, scale_1, base_S, grads, *ctx.settings), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_TD: Tensor, x_TSD: Tensor, post_TS: Tensor, comb_TSS: Tensor, native: bool) -> Tensor:
        ctx.save_for_backward(y_TD, x_TSD, post_TS, comb_TSS)
        ctx.native = native
        return (cpu if native else reference).combine(y_TD, x_TSD, post_TS, comb_TSS)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_TSD: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore
        y_TD, x_TSD, post_TS, comb_TSS = ctx.saved_tensors
        if ctx.native:
            return *cpu.combine_backward(grad_TSD, y_TD, x_TSD, post_TS, comb_TSS), None
        g_TSD, wide_TSD, wide_TD = reference._wide(grad_TSD), reference._wide(x_TSD), reference._wide(y_TD)
        # out[k] = post[k] y + sum_j comb[j, k] x[j]
        d_y_TD = torch.bmm(post_TS[:, None], g_TSD).squeeze(1)
        d_post_TS = (g_TSD * wide_TD[:, None]).sum(dim=2)
        d_x_TSD = torch.bmm(comb_TSS, g_TSD)
        d_comb_TSS = torch.bmm(wide_TSD, g_TSD.mT)
        return d_y_TD.to(y_TD.dtype), d_x_TSD.to(x_TSD.dtype), d_post_TS, d_comb_TSS, None
