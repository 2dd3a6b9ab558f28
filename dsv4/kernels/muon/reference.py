"""Muon in plain torch: matrices of equal shape are orthogonalised together.

Legend: N matrices of one shape, n rows, m columns.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dsv4.kernels.newton_schulz import orthogonalize

if TYPE_CHECKING:
    from dsv4.kernels.muon import Matrix, MuonRule

_ENTRIES = 1 << 21  # matrix entries orthogonalised at once: 8 MiB in fp32, which the allocator keeps for the next


def step_matrices(matrices: "Sequence[Matrix]", rule: "MuonRule") -> None:
    """See dsv4.kernels.muon.step_matrices."""
    weights, momenta, grads = (list(column) for column in zip(*matrices, strict=True))
    torch._foreach_mul_(momenta, rule.momentum)
    torch._foreach_add_(momenta, grads)
    if rule.decay:
        torch._foreach_mul_(weights, 1 - rule.lr * rule.decay)
    by_shape: dict[tuple[int, ...], list[Matrix]] = defaultdict(list)
    for tensors in matrices:
        by_shape[tuple(tensors[0].shape)].append(tensors)
    for (n, m), found in by_shape.items():
        size = max(1, _ENTRIES // (n * m))
        for at in range(0, len(found), size):
            _update(found[at : at + size], rule, -rule.lr * rule.rms * max(n, m) ** 0.5)


def _update(matrices: "Sequence[Matrix]", rule: "MuonRule", alpha: float) -> None:
    weights, momenta, grads = (list(column) for column in zip(*matrices, strict=True))
    x_Nnm = torch.stack(momenta)
    if rule.nesterov:  # looks one step ahead: mu M + G
        x_Nnm.mul_(rule.momentum)
        torch._foreach_add_(list(x_Nnm.unbind()), grads)
    o_Nnm = orthogonalize(x_Nnm, rule.steps, dtype=rule.dtype)
    torch._foreach_add_(weights, list(o_Nnm.unbind()), alpha=alpha)
