"""Next-token loss from hidden rows and the head's weight, without logits of all rows at once (report 4.3).

Legend: T tokens, D hidden size, V vocabulary, K choices per token.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, finfo, float32, promote_types

from dsv4.kernels.autograd import node
from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.vocab_loss import native, reference, torch

__all__ = ["CHUNK_LOGITS", "RowLogprobs", "VocabLoss", "chunk_rows", "row_logprobs", "vocab_loss"]

CHUNK_LOGITS = 1 << 23  # logits held at once: 32 MiB in fp32


@dataclass(frozen=True, slots=True)
class VocabLoss:
    """loss carries the gradient; the others are for logs."""

    loss: Tensor  # scalar
    loss_T: Tensor  # -log p of each target, before weights
    correct_T: Tensor  # bool: the target has the largest logit


def vocab_loss(
    x_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    row_weight_T: Tensor | None = None,
    *,
    total: float | Tensor | None = None,
    chunk: int | None = None,
    impl: str | None = None,
) -> VocabLoss:
    """sum_t weight[t] * -log softmax(x[t] W^T)[target[t]] / total, where total is the sum of the weights if not given.

    total=1 gives the sum. row_weight_T: float or bool, 1 where not given; a row of weight 0 has no loss and no
    gradient. Without other rows the loss is 0 when total is not given. chunk: rows at once (default: as many as make
    CHUNK_LOGITS logits). Differentiable in x and the head's weight, once. "native" and "torch" make the gradients
    during the forward pass, so memory is two gradients and one chunk of logits. Softmax in fp32 (fp64 for fp64 inputs).
    """
    _check(x_TD, weight_VD, target_T, row_weight_T)
    compute = promote_types(x_TD.dtype, float32)
    if row_weight_T is None:
        row_weight_T = target_T.new_ones(target_T.shape, dtype=compute)
    row_weight_T = row_weight_T.detach().to(compute)
    if total is None:
        total = row_weight_T.sum().clamp(min=finfo(compute).tiny)
    row_weight_T, chunk = row_weight_T / total, chunk_rows("vocab_loss", chunk, len(weight_VD))
    return VocabLoss(*dispatch("vocab_loss", impl, _VOCAB_LOSS, x_TD, weight_VD, target_T, row_weight_T, chunk))


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Both under the distribution over the ids that a row keeps. logprob_T carries the gradient."""

    logprob_T: Tensor
    entropy_T: Tensor


def row_logprobs(
    x_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    kept_TK: Tensor | None = None,
    *,
    chunk: int | None = None,
    impl: str | None = None,
) -> RowLogprobs:
    """log softmax(x[t] W^T)[target[t]] of each row, with a gradient of its own, and the entropy of that softmax.

    kept_TK: the ids that the softmax is over, -1 = none; a row of -1 alone keeps all. A target that is not kept has
    -inf, and no gradient. chunk: as in `vocab_loss`. The backward pass computes the logits again, a chunk at a time.
    "torch" multiplies as the model's head does when it serves, so its values are the engine's, bit for bit.
    """
    _check(x_TD, weight_VD, target_T, None)
    if kept_TK is not None and (kept_TK.dim() != 2 or len(kept_TK) != len(x_TD)):
        raise ValueError(f"row_logprobs: kept_TK must have shape [{len(x_TD)}, K], got {list(kept_TK.shape)}")
    chunk = chunk_rows("row_logprobs", chunk, len(weight_VD))
    return RowLogprobs(*dispatch("row_logprobs", impl, _ROW_LOGPROBS, x_TD, weight_VD, target_T, kept_TK, chunk))


def _check(x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, row_weight_T: Tensor | None) -> None:
    rows, dim = x_TD.shape
    if weight_VD.shape[1] != dim:
        raise ValueError(f"vocab_loss: x has {dim} columns, the head {weight_VD.shape[1]}")
    for name, given in (("target_T", target_T), ("row_weight_T", row_weight_T)):
        if given is not None and tuple(given.shape) != (rows,):
            raise ValueError(f"vocab_loss: {name} must have shape [{rows}], got {list(given.shape)}")


def chunk_rows(operation: str, chunk: int | None, logits: int) -> int:
    """Rows at once: `chunk`, or as many as make CHUNK_LOGITS logits where a row has `logits`. Raises ValueError naming
    the operation."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"{operation}: chunk must be at least 1, got {chunk}")
    return chunk or max(1, CHUNK_LOGITS // logits)


_GIVE: dict[str, Any] = {"keep": slice(3, None), "give": 3, "differentiable": 1}
_VOCAB_LOSS = (
    Implementation(
        "native",
        partial(torch.loss_alone, spread=native.spread),
        native.takes,
        node(partial(torch.loss_and_gradients, spread=native.spread), torch.backward, **_GIVE),
    ),
    Implementation("torch", torch.loss_alone, differentiable=node(torch.loss_and_gradients, torch.backward, **_GIVE)),
    Implementation("reference", reference.vocab_loss, differentiable=reference.vocab_loss),
)
_ROW_LOGPROBS = (
    Implementation(
        "torch",
        lambda *arguments: torch.row_logprobs(*arguments)[:2],
        differentiable=node(
            torch.row_logprobs, torch.row_logprobs_backward, keep=slice(2, 3), give=2, differentiable=1
        ),
    ),
    Implementation("reference", reference.row_logprobs, differentiable=reference.row_logprobs),
)
