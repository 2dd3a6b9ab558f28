"""Hyper-connections in plain torch with gradients by hand. The backward pass computes intermediate results again
instead of keeping them.

The twenty normalisations of the Sinkhorn iteration would otherwise be 39 nodes and 78 saved tensors a connection. They
run with tokens in the last dimension, so that every operation is a long vector.

Legend: T tokens, S streams, D hidden size, Z = S * D, X = (2 + S) * S mixes, in the order [pre | post | comb].
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dsv4.kernels.hyper_connection.reference import collapse, gates, mix, wide


def enter(
    x_TSD: Tensor, fn_XZ: Tensor, scale_3: Tensor, base_X: Tensor, iterations: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See dsv4.kernels.hyper_connection.enter."""
    pre_TS, post_TS, comb = gates(mix(x_TSD, fn_XZ, norm_eps), scale_3, base_X, x_TSD.shape[1], eps)
    *_, (_, _, comb_SST) = _normalisations(_soft(comb, x_TSD.shape[1]) + eps, iterations, eps)
    return collapse(x_TSD, pre_TS), post_TS, comb_SST.permute(2, 0, 1).contiguous()


def enter_backward(
    gradients: tuple[Tensor, Tensor, Tensor],
    kept: Sequence[Tensor],
    x_TSD: Tensor,
    fn_XZ: Tensor,
    scale_3: Tensor,
    base_X: Tensor,
    iterations: int,
    eps: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, fn, scale and base, given those of y, post and comb."""
    grad_TD, grad_post_TS, grad_comb_TSS = gradients
    streams = x_TSD.shape[1]
    parts = [streams, streams, streams * streams]
    x_TZ = wide(x_TSD.flatten(1))
    x_TSd, grad_TD = x_TZ.view(x_TSD.shape), wide(grad_TD)
    raw_TX = x_TZ @ fn_XZ.T
    rms_T1 = torch.rsqrt(torch.linalg.vector_norm(x_TZ, dim=1, keepdim=True).square() / x_TZ.shape[1] + norm_eps)
    mix_TX = raw_TX * rms_T1
    scale_X = torch.repeat_interleave(scale_3, torch.tensor(parts, device=scale_3.device))
    pre_TS, post_TS, comb = torch.addcmul(base_X, mix_TX, scale_X).split(parts, dim=1)
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
    pull_T1 = (d_mix_TX * raw_TX).sum(dim=1, keepdim=True) * rms_T1.pow(3) / -x_TZ.shape[1]
    d_x_TZ = torch.addcmul(d_raw_TX @ fn_XZ, x_TZ, pull_T1)
    d_x_TSD = d_x_TZ.view(x_TSD.shape).addcmul_((pre_TS + eps)[..., None], grad_TD[:, None])
    return d_x_TSD.to(x_TSD.dtype), d_raw_TX.T @ x_TZ, d_scale_3, d_gate_TX.sum(dim=0)


def combine_backward(
    gradients: tuple[Tensor], kept: Sequence[Tensor], y_TD: Tensor, x_TSD: Tensor, post_TS: Tensor, comb_TSS: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of y, x, post and comb, given that of the new streams: out[k] = post[k] y + sum_j comb[j, k] x[j]."""
    g_TSD, wide_TSD, wide_TD = wide(gradients[0]), wide(x_TSD), wide(y_TD)
    d_y_TD = torch.bmm(post_TS[:, None], g_TSD).squeeze(1)
    d_post_TS = (g_TSD * wide_TD[:, None]).sum(dim=2)
    d_x_TSD = torch.bmm(comb_TSS, g_TSD)
    d_comb_TSS = torch.bmm(wide_TSD, g_TSD.mT)
    return d_y_TD.to(y_TD.dtype), d_x_TSD.to(x_TSD.dtype), d_post_TS, d_comb_TSS


def _soft(comb: Tensor, streams: int) -> Tensor:
    """The gates comb [T, S * S] after the first row normalisation, which is a softmax: [S, S, T]."""
    return comb.T.contiguous().view(streams, streams, -1).softmax(dim=1)


def _normalisations(m_SST: Tensor, iterations: int, eps: float) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Columns, then rows and columns again: the axis summed over, 1 / (sum + eps), and the normalised matrices."""
    for axis in [0] + [1, 0] * (iterations - 1):
        inverse = (m_SST.sum(dim=axis, keepdim=True) + eps).reciprocal_()
        m_SST = m_SST * inverse
        yield axis, inverse, m_SST


def _sinkhorn_backward(comb: Tensor, grad_TSS: Tensor, iterations: int, eps: float) -> Tensor:
    """Gradient of the doubly stochastic matrices by the gates comb [T, S * S] they start from.

    y = x / d with d = sum x + eps has dx = (dy - sum(dy y)) / d.
    """
    soft_SST = _soft(comb, grad_TSS.shape[1])
    g_SST = grad_TSS.permute(1, 2, 0).contiguous()
    for axis, inverse, y_SST in reversed(list(_normalisations(soft_SST + eps, iterations, eps))):
        g_SST = (g_SST - (g_SST * y_SST).sum(dim=axis, keepdim=True)).mul_(inverse)
    g_SST = (g_SST - (g_SST * soft_SST).sum(dim=1, keepdim=True)).mul_(soft_SST)
    return g_SST.flatten(0, 1).T
