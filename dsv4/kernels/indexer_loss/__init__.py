"""The loss of the lightning indexer: KL(p || softmax(I)) (report 2.3.1; the method of V3.2).

p is the attention of the indexer's own layer, a joint softmax over window, compressed entries and sink, summed over
heads and L1-normalised over the entries that are considered.

Legend: T tokens, J indexer heads, I indexer dim, M entry rows.
"""

from typing import Any

import torch
from torch import Tensor

from dsv4.kernels.autograd import once_differentiable
from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.indexer_loss import native, reference
from dsv4.kernels.indexer_loss.indexed import IndexedAttention
from dsv4.kernels.indexer_loss.reference import attention_target, entry_rows

__all__ = ["IndexedAttention", "attention_target", "entry_rows", "indexer_kl"]


def indexer_kl(seen: IndexedAttention, *, impl: str | None = None) -> Tensor:
    """sum over queries of KL(p_t || softmax(I_t)), a scalar; queries without a visible entry add nothing.

    Considers what the attention read: the chosen entries, or all visible ones if it read them all. Never builds T x M
    values: gradients for the indexer's queries, weights and keys are made a block of queries at a time, in the forward
    pass. Differentiable once, in these three. In fp32 (fp64 for fp64 inputs).
    """
    return _IndexerKL.apply(seen.index_TJI, seen.weight_TJ, seen.index_MI, seen, impl)


class _IndexerKL(torch.autograd.Function):
    # not a `kernels.autograd.node`: that would keep `seen` until the backward pass, which does not need it
    @staticmethod
    def forward(
        ctx: Any, index_TJI: Tensor, weight_TJ: Tensor, index_MI: Tensor, seen: IndexedAttention, impl: str | None
    ) -> Tensor:
        total, *grads = dispatch("indexer_kl", impl, _INDEXER_KL, seen)
        ctx.save_for_backward(*(g.to(t.dtype) for g, t in zip(grads, (index_TJI, weight_TJ, index_MI), strict=True)))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return *(kept * grads[0].to(kept.dtype) for kept in ctx.saved_tensors), None, None


_INDEXER_KL = (
    Implementation("native", native.loss_and_gradients, native.takes),
    Implementation("reference", reference.loss_and_gradients),
)
