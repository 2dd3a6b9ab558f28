"""Gradient clipping by the norm of all gradients together. The report publishes no norm; V3 clips at 1.

`dsv4.distributed.gradients.clip` is the same over many ranks.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], largest: float) -> float:
    """Scale all gradients so that their joint norm is at most `largest`; returns the norm before, in fp32.

    A norm that is not finite is returned as it is and nothing is scaled: such a step must not be taken.
    """
    check_largest(largest)
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return 0.0
    norm = float(torch.linalg.vector_norm(norms(grads)))
    scale_down(grads, norm, largest)
    return norm


def check_largest(largest: float) -> None:
    """Raise ValueError for a norm that nothing can be clipped to."""
    if not largest > 0:
        raise ValueError(f"the largest gradient norm must be positive, got {largest}")


def norms(grads: Sequence[Tensor]) -> Tensor:
    """The norm of each of at least one gradient, fp32."""
    return torch.stack(torch._foreach_norm([g.float() for g in grads]))


def scale_down(grads: Sequence[Tensor], norm: float, largest: float) -> None:
    """Scale gradients in place if the joint norm is finite and above `largest`."""
    if grads and math.isfinite(norm) and norm > largest:
        torch._foreach_mul_(list(grads), largest / norm)
