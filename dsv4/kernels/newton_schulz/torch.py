"""Newton-Schulz of many equal shapes as batched products, the Gram matrix on the shorter side.

Legend: N matrices of one shape, n rows, m columns, s the smaller of both.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dsv4.kernels.newton_schulz.reference import TINY, at_least_float32, int16_product


def orthogonalize(x_Nnm: Tensor, steps: Sequence[tuple[float, float, float]], dtype: torch.dtype) -> Tensor:
    """See dsv4.kernels.newton_schulz.orthogonalize. (M M^T) M = M (M^T M), so tall matrices need no transposing."""
    tall = x_Nnm.shape[1] > x_Nnm.shape[2]
    m_Nnm = x_Nnm.to(at_least_float32(x_Nnm.dtype))
    m_Nnm = m_Nnm / torch.linalg.vector_norm(m_Nnm, dim=(1, 2), keepdim=True).clamp(min=TINY)
    if dtype == torch.int16:
        return _in_int16(m_Nnm, steps, tall).to(x_Nnm.dtype)
    m_Nnm = m_Nnm.to(dtype)
    for a, b, c in steps:
        gram_Nss = torch.bmm(m_Nnm.mT, m_Nnm) if tall else torch.bmm(m_Nnm, m_Nnm.mT)
        # b G + c G^2, so that one product with M is left
        inner_Nss = torch.baddbmm(gram_Nss, gram_Nss, gram_Nss, beta=b, alpha=c)
        left, right = (m_Nnm, inner_Nss) if tall else (inner_Nss, m_Nnm)
        m_Nnm = torch.baddbmm(m_Nnm, left, right, beta=a)
    return m_Nnm.to(x_Nnm.dtype)


def _in_int16(m_Nnm: Tensor, steps: Sequence[tuple[float, float, float]], tall: bool) -> Tensor:
    for a, b, c in steps:
        gram_Nss = int16_product(m_Nnm.mT, m_Nnm) if tall else int16_product(m_Nnm, m_Nnm.mT)
        change_Nss = b * gram_Nss + c * int16_product(gram_Nss, gram_Nss)
        m_Nnm = a * m_Nnm + (int16_product(m_Nnm, change_Nss) if tall else int16_product(change_Nss, m_Nnm))
    return m_Nnm
