"""The definition of mHC in plain torch.

Legend: T tokens, S streams, D hidden size, Z = S * D, X = (2 + S) * S mixes, in the order [pre | post | comb].
"""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in fp32, or in fp64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mix(x_TSD: Tensor, fn_XZ: Tensor, eps: float) -> Tensor:
    """Projection of RMS-normalised vec(X): mixes_TX fp32 (eqs 3-5 before scale and base). The division by the RMS comes
    after the projection, as released."""
    x_TZ = wide(x_TSD.flatten(1))
    norm_T1 = torch.linalg.vector_norm(x_TZ, dim=1, keepdim=True)
    return (x_TZ @ fn_XZ.T) * torch.rsqrt(norm_T1.square() / x_TZ.shape[1] + eps)


def gates(mixes_TX: Tensor, scale_3: Tensor, base_X: Tensor, streams: int, eps: float) -> tuple[Tensor, ...]:
    """The final pre_TS and post_TS, and comb [T, S * S] before it is made doubly stochastic."""
    raw = mixes_TX.split([streams, streams, streams * streams], dim=1)
    base = base_X.split([streams, streams, streams * streams])
    pre, post, comb = (r * s + b for r, s, b in zip(raw, scale_3, base, strict=True))
    return pre.sigmoid() + eps, 2 * post.sigmoid(), comb


def split_sinkhorn(
    mixes_TX: Tensor, scale_3: Tensor, base_X: Tensor, streams: int, iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See dsv4.kernels.hyper_connection.split_sinkhorn. The first row normalisation is the softmax."""
    pre_TS, post_TS, comb = gates(mixes_TX, scale_3, base_X, streams, eps)
    comb_TSS = comb.unflatten(1, (streams, streams)).softmax(dim=2) + eps
    comb_TSS = comb_TSS / (comb_TSS.sum(dim=1, keepdim=True) + eps)
    for _ in range(iterations - 1):
        comb_TSS = comb_TSS / (comb_TSS.sum(dim=2, keepdim=True) + eps)
        comb_TSS = comb_TSS / (comb_TSS.sum(dim=1, keepdim=True) + eps)
    return pre_TS, post_TS, comb_TSS


def collapse(x_TSD: Tensor, pre_TS: Tensor) -> Tensor:
    """The sub-layer's input: sum_s pre[t, s] x[t, s], in x's dtype (fp32 inside)."""
    return torch.bmm(pre_TS.contiguous()[:, None], wide(x_TSD)).squeeze(1).to(x_TSD.dtype)


def combine(y_TD: Tensor, x_TSD: Tensor, post_TS: Tensor, comb_TSS: Tensor) -> Tensor:
    """See dsv4.kernels.hyper_connection.combine."""
    mixed_TSD = torch.bmm(comb_TSS.transpose(1, 2).contiguous(), wide(x_TSD))
    return torch.addcmul(mixed_TSD, post_TS[..., None], wide(y_TD)[:, None]).to(x_TSD.dtype)


def enter(
    x_TSD: Tensor, fn_XZ: Tensor, scale_3: Tensor, base_X: Tensor, iterations: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See dsv4.kernels.hyper_connection.enter."""
    mixes_TX = mix(x_TSD, fn_XZ, norm_eps)
    pre_TS, post_TS, comb_TSS = split_sinkhorn(mixes_TX, scale_3, base_X, x_TSD.shape[1], iterations, eps)
    return collapse(x_TSD, pre_TS), post_TS, comb_TSS


def collapse_head(x_TSD: Tensor, fn_SZ: Tensor, scale_1: Tensor, base_S: Tensor, eps: float, norm_eps: float) -> Tensor:
    """See dsv4.kernels.hyper_connection.collapse_head."""
    mixes_TS = mix(x_TSD, fn_SZ, norm_eps)
    return collapse(x_TSD, (mixes_TS * scale_1 + base_S).sigmoid() + eps)
