"""A step of Muon over many matrices: momentum, orthogonalisation, decay and update (report 2.4, algorithm 1).

Legend: n rows, m columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, dtype, float32

from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.muon import native, reference
from dsv4.kernels.newton_schulz import HYBRID, Coefficients

__all__ = ["Matrix", "MuonRule", "step_matrices"]

Matrix = tuple[Tensor, Tensor, Tensor]  # weight, momentum and gradient, each [n, m]


@dataclass(frozen=True, slots=True)
class MuonRule:
    """M <- momentum M + G;  O = NewtonSchulz(momentum M + G) sqrt(max(n, m)) rms;  W <- W (1 - lr decay) - lr O.

    nesterov=False orthogonalises M itself. steps: coefficients of eq. 28. dtype: what Newton-Schulz multiplies in.
    """

    lr: float
    momentum: float
    decay: float
    rms: float
    nesterov: bool = True
    steps: Sequence[Coefficients] = HYBRID
    dtype: dtype = float32


def step_matrices(matrices: Sequence[Matrix], rule: MuonRule, *, impl: str | None = None) -> None:
    """Change weights and momenta in place. The result for one matrix does not depend on the others."""
    if matrices:
        dispatch("step_matrices", impl, _STEP_MATRICES, matrices, rule)


_STEP_MATRICES = (
    Implementation("native", native.step_matrices, native.takes),
    Implementation("reference", reference.step_matrices),
)
