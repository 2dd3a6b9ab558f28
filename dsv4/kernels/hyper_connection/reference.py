"""mHC in plain torch.

T tokens, S streams, D hidden size, E = S * D, X = (2 + S) * S mixes [pre | post | comb].
"""

from typing import Any

import torch
from torch import Tensor

from dsv4.kernels.norm import reference as norm


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mix(x_TSD: Tensor, fn_XE: Tensor, eps: float) -> Tensor:
    """See dsv4.kernels.hyper_connection.mix. The division by the RMS comes after the projection, as released."""
    x_TE = _wide(x_TSD.flatten(1))
    norm_T1 = torch.linalg.vector_norm(x_TE, dim=1, keepdim=True)
    return (x_TE @ fn_XE.T) * torch.rsqrt(norm_T1.square() / x_TE.shape[1] + eps)


def _gates(mixes_TX: Tensor, scale_3: Tensor, base_X: Tensor, streams: int, eps: float) -> tuple[Tensor, ...]:
    raw = mixes_TX.split([streams, streams, streams * streams], dim=1)
    base = base_X.split([streams, streams, streams * streams])
    pre, post, comb = (r * s + b for r, s, b in zip(raw, scale_3, base, strict=True))
    return pre.sigmoid() + eps, 2 * post.sigmoid(), comb


def split_sinkhorn(
    mixes_TX: Tensor, scale_3: Tensor, base_X: Tensor, streams: int, iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See dsv4.kernels.hyper_connection.split_sinkhorn. The first row normalisation is the softmax."""
    pre_TS, post_TS, comb = _gates(mixes_TX, scale_3, base_X, streams, eps)
    comb_TSS = comb.unflatten(1, (streams, streams)).softmax(dim=2) + eps
    comb_TSS = comb_TSS / (comb_TSS.sum(dim=1, keepdim=True) + eps)
    for _ in range(iterations - 1):
        comb_TSS = comb_TSS / (comb_TSS.sum(dim=2, keepdim=True) + eps)
        comb_TSS = comb_TSS / (comb_TSS.sum(dim=1, keepdim=True) + eps)
    return pre_TS, post_TS, comb_TSS


class _Sinkhorn(torch.autograd.Function):
    """Alternating normalisation of positive matrices, tokens last so that every operation is a long vector.

    Backward walks the saved denominators: y = x / d with d = sum x + eps has dx = (dy - sum(dy * y)) / d.
    """

    @staticmethod
    def forward(ctx: Any, m_SST: Tensor, iterations: int, eps: float) -> Tensor:
        ctx.axes = [0] + [1, 0] * (iterations - 1)
        saved = []
        for axis in ctx.axes:
            d = m_SST.sum(dim=axis, keepdim=True) + eps
            m_SST = m_SST / d
            saved += [d, m_SST]
        # NOTE: as attributes of ctx these would keep the graph alive for ever (the last one is the output)
        ctx.save_for_backward(*saved)
        return m_SST

    @staticmethod
    def backward(ctx: Any, grad_SST: Tensor) -> tuple[Tensor, None, None]:  # pyrefly: ignore
        saved = ctx.saved_tensors
        for axis, d, y in zip(reversed(ctx.axes), saved[-2::-2], saved[::-2], strict=True):
            grad_SST = (grad_SST - (grad_SST * y).sum(dim=axis, keepdim=True)) / d
        return grad_SST, None, None


def split_sinkhorn_unrolled(
    mixes_TX: Tensor, scale_3: Tensor, base_X: Tensor, streams: int, iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with tokens in the last dimension and a hand-written backward: fewer and longer operations."""
    pre_TS, post_TS, comb = _gates(mixes_TX, scale_3, base_X, streams, eps)
    start_SST = comb.T.contiguous().view(streams, streams, -1).softmax(dim=1) + eps
    comb_SST = _Sinkhorn.apply(start_SST, iterations, eps)
    return pre_TS, post_TS, comb_SST.permute(2, 0, 1).contiguous()


def collapse(x_TSD: Tensor, pre_TS: Tensor) -> Tensor:
    """See dsv4.kernels.hyper_connection.collapse."""
    return torch.bmm(pre_TS.contiguous()[:, None], _wide(x_TSD)).squeeze(1).to(x_TSD.dtype)


def combine(y_TD: Tensor, x_TSD: Tensor, post_TS: Tensor, comb_TSS: Tensor) -> Tensor:
    """See dsv4.kernels.hyper_connection.combine."""
    mixed_TSD = torch.bmm(comb_TSS.transpose(1, 2).contiguous(), _wide(x_TSD))
    return torch.addcmul(mixed_TSD, post_TS[..., None], _wide(y_TD)[:, None]).to(x_TSD.dtype)


def enter(
    x_TSD: Tensor,
    fn_XE: Tensor,
    scale_3: Tensor,
    base_X: Tensor,
    iterations: int,
    eps: float,
    norm_eps: float,
    norm_D: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See dsv4.kernels.hyper_connection.enter."""
    mixes_TX = mix(x_TSD, fn_XE, norm_eps)
    pre_TS, post_TS, comb_TSS = split_sinkhorn_unrolled(mixes_TX, scale_3, base_X, x_TSD.shape[1], iterations, eps)
    y_TD = collapse(x_TSD, pre_TS)
    return y_TD if norm_D is None else norm.rms_norm(y_TD, norm_D, norm_eps), post_TS, comb_TSS


def collapse_head(x_TSD: Tensor, fn_SE: Tensor, scale_1: Tensor, base_S: Tensor, eps: float, norm_eps: float) -> Tensor:
    """See dsv4.kernels.hyper_connection.collapse_head."""
    mixes_TS = mix(x_TSD, fn_SE, norm_eps)
    return collapse(x_TSD, (mixes_TS * scale_1 + base_S).sigmoid() + eps)
