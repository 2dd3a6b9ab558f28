"""The routed experts of a layer with gradients by hand: products per expert, everything element-wise for all at once.

Legend: T tokens, D hidden size, E experts, K choices per token, F expert inner size, A assignments sorted by expert,
N output rows, K input columns (of one product).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dsv4.kernels.autograd import node
from dsv4.kernels.moe.assignments import Assignments
from dsv4.kernels.moe.reference import clamped_swiglu

Cast = Callable[[Tensor], Tensor]


class ExpertProducts(Protocol):
    """The products of a layer of experts: rows sorted by expert, one matrix for each expert."""

    def rows(self, a_AK: Tensor, weights: Sequence[Tensor], out_AN: Tensor, *, turned: bool, add: bool = False) -> None:
        """out = (or += with `add`) each expert's rows of a times weight[N, K]^T; with `turned` times weight[K, N]."""
        ...

    def weights(self, a_AN: Tensor, b_AK: Tensor) -> list[Tensor | None]:
        """a^T b over each expert's rows; None for an expert without rows."""
        ...

    def swiglu(self, gate_AF: Tensor, up_AF: Tensor, limit: float) -> Tensor:
        """silu(gate) * up, clamped."""
        ...

    def swiglu_backward(
        self, gate_AF: Tensor, up_AF: Tensor, grad_AF: Tensor, weight_A: Tensor, limit: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """hidden = swiglu * weight, and the gradients of gate, up and weight given that of hidden."""
        ...


class Products:
    """`ExpertProducts` by torch, one expert after the other."""

    def __init__(self, assignments: Assignments) -> None:
        self._spans = list(assignments.spans())
        self._experts = len(assignments.counts_E)

    def rows(self, a_AK: Tensor, weights: Sequence[Tensor], out_AN: Tensor, *, turned: bool, add: bool = False) -> None:
        for expert, span in self._spans:
            right = weights[expert] if turned else weights[expert].T
            if add:
                out_AN[span].addmm_(a_AK[span], right)
            else:
                torch.mm(a_AK[span], right, out=out_AN[span])

    def weights(self, a_AN: Tensor, b_AK: Tensor) -> list[Tensor | None]:
        made: list[Tensor | None] = [None] * self._experts
        for expert, span in self._spans:
            made[expert] = a_AN[span].T @ b_AK[span]
        return made

    def swiglu(self, gate_AF: Tensor, up_AF: Tensor, limit: float) -> Tensor:
        return clamped_swiglu(gate_AF, up_AF, limit)

    def swiglu_backward(
        self, gate_AF: Tensor, up_AF: Tensor, grad_AF: Tensor, weight_A: Tensor, limit: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A clamped value has no gradient."""
        inner_gate = inner_up = None
        if limit:
            inner_gate, inner_up = gate_AF <= limit, up_AF.abs() <= limit
            gate_AF, up_AF = gate_AF.clamp(max=limit), up_AF.clamp(-limit, limit)
        sigmoid_AF = gate_AF.sigmoid()
        silu_AF = gate_AF * sigmoid_AF
        d_plain_AF = grad_AF * weight_A[:, None]
        # silu' = s + silu (1 - s)
        slope_AF = torch.addcmul(sigmoid_AF, silu_AF, 1 - sigmoid_AF)
        d_gate_AF, d_up_AF = (d_plain_AF * up_AF).mul_(slope_AF), d_plain_AF.mul_(silu_AF)
        if inner_gate is not None and inner_up is not None:
            d_gate_AF, d_up_AF = d_gate_AF.mul_(inner_gate), d_up_AF.mul_(inner_up)
        plain_AF = silu_AF.mul_(up_AF)
        d_weight_A = (grad_AF * plain_AF).sum(dim=1)
        return plain_AF.mul_(weight_A[:, None]), d_gate_AF, d_up_AF, d_weight_A


def routed_experts(
    x_TD: Tensor,
    ids_TK: Tensor,
    weight_TK: Tensor,
    w1: Sequence[Tensor],
    w2: Sequence[Tensor],
    w3: Sequence[Tensor],
    limit: float,
    cast: Cast | None,
    products: Callable[[Assignments], ExpertProducts] = Products,
) -> Tensor:
    """See dsv4.kernels.moe.routed_experts."""
    assignments = Assignments.of(ids_TK, len(w1))
    return _experts(x_TD, weight_TK, assignments, products(assignments), limit, cast, *w1, *w2, *w3)


def _forward(
    x_TD: Tensor,
    weight_TK: Tensor,
    assignments: Assignments,
    products: ExpertProducts,
    limit: float,
    cast: Cast | None,
    *weights: Tensor,
) -> tuple[Tensor, ...]:
    """The sum of each token's experts; then the gate and the linear part of every assignment."""
    w1, w2, w3 = _thirds(weights)
    x_AD = assignments.rows(_through(cast, x_TD))
    gate_AF = x_AD.new_empty(len(x_AD), w1[0].shape[0])
    up_AF, y_AD = torch.empty_like(gate_AF), torch.empty_like(x_AD)
    products.rows(x_AD, w1, gate_AF, turned=False)
    products.rows(x_AD, w3, up_AF, turned=False)
    weight_A = assignments.weights(weight_TK)
    hidden_AF = _through(cast, (products.swiglu(gate_AF, up_AF, limit) * weight_A[:, None]).to(x_TD.dtype))
    products.rows(hidden_AF, w2, y_AD, turned=False)
    return assignments.sums(y_AD.to(torch.promote_types(x_TD.dtype, torch.float32))), gate_AF, up_AF


def _backward(
    gradients: tuple[Tensor],
    kept: Sequence[Tensor],
    x_TD: Tensor,
    weight_TK: Tensor,
    assignments: Assignments,
    products: ExpertProducts,
    limit: float,
    cast: Cast | None,
    *weights: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, the routing weights and every expert's matrices; kept: gate and linear part."""
    (grad_TD,), (gate_AF, up_AF) = gradients, kept
    w1, w2, w3 = _thirds(weights)
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    weight_A = assignments.weights(weight_TK)
    g_AD = assignments.rows(grad_TD.to(x_TD.dtype))
    d_hidden_AF = torch.empty_like(gate_AF)
    products.rows(g_AD, w2, d_hidden_AF, turned=True)
    hidden_AF, d_gate_AF, d_up_AF, d_weight_A = products.swiglu_backward(
        gate_AF.to(wide), up_AF.to(wide), d_hidden_AF.to(wide), weight_A.to(wide), limit
    )
    hidden_AF = _through(cast, hidden_AF.to(x_TD.dtype))
    x_AD = assignments.rows(_through(cast, x_TD))
    d_gate_AF, d_up_AF = d_gate_AF.to(x_TD.dtype), d_up_AF.to(x_TD.dtype)
    d_x_AD = torch.empty_like(x_AD)
    products.rows(d_gate_AF, w1, d_x_AD, turned=True)
    products.rows(d_up_AF, w3, d_x_AD, turned=True, add=True)
    d_w1, d_w2, d_w3 = (products.weights(*pair) for pair in ((d_gate_AF, x_AD), (g_AD, hidden_AF), (d_up_AF, x_AD)))
    d_weight_TK = d_weight_A.to(weight_A.dtype).index_select(0, assignments.place_A).view_as(weight_TK)
    d_x_TD = assignments.sums(d_x_AD.to(wide)).to(x_TD.dtype)
    return d_x_TD, d_weight_TK, None, None, None, None, *d_w1, *d_w2, *d_w3


_experts = node(_forward, _backward, keep=slice(1, 3), give=1)


def _thirds(weights: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    """The experts' first, second and third matrices."""
    size = len(weights) // 3
    return tuple(weights[at : at + size] for at in range(0, 3 * size, size))


def _through(cast: Cast | None, x: Tensor) -> Tensor:
    return x if cast is None else cast(x)
