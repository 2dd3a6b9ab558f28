"""Newton-Schulz as eq. 28 writes it, one matrix at a time.

Legend: N matrices of one shape, n rows, m columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

TINY = 1e-15  # the least norm: where entries have no square in float32, a measured one is too small, and M too large
SHORTEST = 1e-15  # the same for a row or column of a matrix of norm 1
LARGEST = 32767  # of 16-bit integers


def orthogonalize(x_Nnm: Tensor, steps: Sequence[tuple[float, float, float]], dtype: torch.dtype) -> Tensor:
    """See dsv4.kernels.newton_schulz.orthogonalize."""
    done = []
    for x_nm in x_Nnm.to(at_least_float32(x_Nnm.dtype)):
        m_nm = x_nm / torch.linalg.matrix_norm(x_nm).clamp(min=TINY)
        m_nm = m_nm.to(dtype) if dtype.is_floating_point else m_nm
        for a, b, c in steps:
            if dtype == torch.int16:
                gram_nn = int16_product(m_nm, m_nm.mT)
                change_nn = b * gram_nn + c * int16_product(gram_nn, gram_nn)
                m_nm = a * m_nm + int16_product(change_nn, m_nm)
                continue
            gram_nn = m_nm @ m_nm.T
            m_nm = a * m_nm + b * gram_nn @ m_nm + c * gram_nn @ gram_nn @ m_nm
        done.append(m_nm)
    return torch.stack(done).to(x_Nnm.dtype) if done else torch.empty_like(x_Nnm)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """A float type with room for 16-bit integers, and for TINY."""
    return torch.promote_types(dtype, torch.float32)


def int16_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right where rows of left and columns of right are rounded to 16-bit integers, relative to their norms: no
    sum of their products then leaves 32 bits (Cauchy-Schwarz). In the dtype of the operands."""
    integers, units = zip(*(_rounded(x, dim) for x, dim in ((left, -1), (right, -2))), strict=True)
    return (integers[0] @ integers[1]) * (units[0] * units[1])


def _rounded(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Integers, and what 1 stands for in each row or column along `dim`."""
    unit = torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp(min=SHORTEST) / LARGEST
    return (x / unit).round(), unit
