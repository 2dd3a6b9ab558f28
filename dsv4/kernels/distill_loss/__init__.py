"""Divergence of a student from a teacher over the whole vocabulary, from hidden rows and both heads (report 5.1.2,
equation 29), without logits of all rows at once.

Legend: T tokens, D hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, arange, finfo, float32, int64, isin, promote_types

from dsv4.kernels.autograd import node
from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.distill_loss import reference, torch
from dsv4.kernels.vocab_loss import chunk_rows
from dsv4.kernels.vocab_loss.torch import backward

__all__ = ["DistillLoss", "Divergence", "distill_loss"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """What is minimised, with p the student's and q the teacher's probabilities of a row, sums over the vocabulary.

    kind: "reverse" sum p log(p / q); "forward" sum q log(q / p); "jsd" (generalised Jensen-Shannon of GKD)
    beta sum q log(q / m) + (1 - beta) sum p log(p / m) with m = beta q + (1 - beta) p. top_k: of "reverse", a sum over
    the student's k likeliest ids alone; 0 = all. detached: with top_k, log(p / q) carries no gradient. Without that the
    gradient also lowers the mass of the k ids, whatever the teacher says: over all ids that part is 0, over some it is
    not. Raises ValueError naming the field.
    """

    kind: Literal["reverse", "forward", "jsd"] = "reverse"
    beta: float = 0.5
    top_k: int = 0
    detached: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("reverse", "forward", "jsd"):
            raise ValueError(f"kind must be reverse, forward or jsd, got {self.kind!r}")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must lie between 0 and 1, got {self.beta}; the ends are forward and reverse")
        if self.top_k < 0 or (self.top_k and self.kind != "reverse"):
            raise ValueError(f"top_k must be at least 0, and 0 unless kind is reverse, got {self.top_k}")


REVERSE = Divergence()


@dataclass(frozen=True, slots=True)
class DistillLoss:
    """loss carries the gradient; the others are for logs."""

    loss: Tensor  # scalar
    divergence_T: Tensor  # of each row, before weights
    entropy_T: Tensor  # of the student


def distill_loss(
    x_TD: Tensor,
    weight_VD: Tensor,
    teacher_TD: Tensor,
    teacher_VD: Tensor,
    row_weight_T: Tensor | None = None,
    *,
    divergence: Divergence = REVERSE,
    without: tuple[int, ...] = (),
    total: float | Tensor | None = None,
    chunk: int | None = None,
    impl: str | None = None,
) -> DistillLoss:
    """sum_t weight[t] * divergence(softmax(x[t] W^T), softmax(teacher[t] U^T)) / total, where total is the sum of the
    weights if not given.

    teacher_TD, teacher_VD: the teacher's rows and head U, which have no gradient; D may be another than the student's.
    row_weight_T: float or bool, 1 where not given; a row of weight 0 has no loss. without: ids that neither
    distribution is over. chunk: rows at once (default: as many as make CHUNK_LOGITS logits of both together).
    Differentiable in x and the student's head, once: the gradient by a row's logits z is p_v (log(p_v / q_v) - KL) for
    "reverse". "torch" makes the gradients during the forward pass, so memory is two gradients and one chunk of logits
    of each model. Softmax in fp32 (fp64 for fp64 inputs). Raises ValueError where the vocabularies differ.
    """
    _check(x_TD, weight_VD, teacher_TD, teacher_VD, row_weight_T)
    compute = promote_types(x_TD.dtype, float32)
    if without:
        kept_V = ~isin(arange(len(weight_VD), device=weight_VD.device), weight_VD.new_tensor(without, dtype=int64))
        weight_VD, teacher_VD = weight_VD[kept_V], teacher_VD[kept_V]
    if row_weight_T is None:
        row_weight_T = x_TD.new_ones(len(x_TD), dtype=compute)
    row_weight_T = row_weight_T.detach().to(compute)
    if total is None:
        total = row_weight_T.sum().clamp(min=finfo(compute).tiny)
    chunk = chunk_rows("distill_loss", chunk, len(weight_VD) + len(teacher_VD))
    given = (x_TD, weight_VD, teacher_TD.detach(), teacher_VD.detach(), row_weight_T / total, divergence, chunk)
    return DistillLoss(*dispatch("distill_loss", impl, _DISTILL_LOSS, *given))


def _check(
    x_TD: Tensor, weight_VD: Tensor, teacher_TD: Tensor, teacher_VD: Tensor, row_weight_T: Tensor | None
) -> None:
    rows = len(x_TD)
    if len(weight_VD) != len(teacher_VD):
        raise ValueError(f"distill_loss: the student has {len(weight_VD)} ids, the teacher {len(teacher_VD)}")
    for whose, one_TD, head_VD in (("student", x_TD, weight_VD), ("teacher", teacher_TD, teacher_VD)):
        if one_TD.shape[1] != head_VD.shape[1]:
            raise ValueError(
                f"distill_loss: the {whose}'s rows have {one_TD.shape[1]} columns, its head {head_VD.shape[1]}"
            )
    if len(teacher_TD) != rows:
        raise ValueError(f"distill_loss: the student has {rows} rows, the teacher {len(teacher_TD)}")
    if row_weight_T is not None and tuple(row_weight_T.shape) != (rows,):
        raise ValueError(f"distill_loss: row_weight_T must have shape [{rows}], got {list(row_weight_T.shape)}")


_GIVE: dict[str, Any] = {"keep": slice(3, None), "give": 3, "differentiable": 1}
_DISTILL_LOSS = (
    Implementation("torch", torch.loss_alone, differentiable=node(torch.loss_and_gradients, backward, **_GIVE)),
    Implementation("reference", reference.distill_loss, differentiable=reference.distill_loss),
)
