"""Newton-Schulz as eq. 28 writes it, one matrix at a time.

Legend: N matrices of one shape, n rows, m columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

TINY = 1e-30  # below any useful norm: only keeps a zero matrix from becoming NaN


def orthogonalize(x_Nnm: Tensor, steps: Sequence[tuple[float, float, float]], dtype: torch.dtype) -> Tensor:
    """See dsv4.kernels.newton_schulz.orthogonalize."""
    done = []
    for x_nm in x_Nnm:
        m_nm = (x_nm / torch.linalg.matrix_norm(x_nm).clamp(min=TINY)).to(dtype)
        for a, b, c in steps:
            gram_nn = m_nm @ m_nm.T
            m_nm = a * m_nm + b * gram_nn @ m_nm + c * gram_nn @ gram_nn @ m_nm
        done.append(m_nm)
    return torch.stack(done).to(x_Nnm.dtype) if done else torch.empty_like(x_Nnm)
