"""The routed experts of a layer as one autograd node: products per expert, everything element-wise for all at once.

T tokens, D hidden size, E experts, K experts per token, F expert inner size, A = T * K assignments sorted by expert,
n assignments of one expert.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from dsv4.kernels.moe.reference import clamped_swiglu

Cast = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Assignments sorted by expert: token_A, where each went (place_A), and how many each expert got."""

    order_A: Tensor
    place_A: Tensor
    counts: list[int]
    k: int

    @property
    def token_A(self) -> Tensor:
        return self.order_A // self.k

    def spans(self) -> Iterator[tuple[int, slice]]:
        """Experts that have tokens, and their assignments."""
        at = 0
        for expert, count in enumerate(self.counts):
            if count:
                yield expert, slice(at, at + count)
            at += count

    def per_token(self, y_AD: Tensor) -> Tensor:
        """Each token's assignments added in the order of its list."""
        y_TKD = y_AD.index_select(0, self.place_A).view(-1, self.k, y_AD.shape[1])
        return reduce(torch.add, y_TKD.unbind(1))


def routed_experts(
    x_TD: Tensor,
    ids_TK: Tensor,
    weight_TK: Tensor,
    w1: Sequence[Tensor],
    w2: Sequence[Tensor],
    w3: Sequence[Tensor],
    limit: float,
    cast: Cast | None,
) -> Tensor:
    """See dsv4.kernels.moe.routed_experts."""
    order_A = ids_TK.flatten().argsort(stable=True)
    place_A = torch.empty_like(order_A)
    place_A[order_A] = torch.arange(order_A.numel(), device=order_A.device)
    plan = _Plan(order_A, place_A, torch.bincount(ids_TK.flatten(), minlength=len(w1)).tolist(), ids_TK.shape[1])
    return _Experts.apply(x_TD, weight_TK, plan, limit, cast, *w1, *w2, *w3)  # pyrefly: ignore


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weight_TK: Tensor, plan: _Plan, limit: float, cast: Cast | None, *weights: Tensor
    ) -> Tensor:
        experts = len(plan.counts)
        x_AD = _through(cast, x_TD).index_select(0, plan.token_A)
        gate_AF = x_AD.new_empty(len(x_AD), weights[0].shape[0])
        up_AF, y_AD = torch.empty_like(gate_AF), torch.empty_like(x_AD)
        for e, span in plan.spans():
            torch.mm(x_AD[span], weights[e].T, out=gate_AF[span])
            torch.mm(x_AD[span], weights[2 * experts + e].T, out=up_AF[span])
        weight_A1 = weight_TK.flatten().index_select(0, plan.order_A)[:, None]
        hidden_AF = _through(cast, (clamped_swiglu(gate_AF, up_AF, limit) * weight_A1).to(x_TD.dtype))
        for e, span in plan.spans():
            torch.mm(hidden_AF[span], weights[experts + e].T, out=y_AD[span])
        ctx.plan, ctx.limit, ctx.cast = plan, limit, cast
        ctx.save_for_backward(x_TD, weight_A1, gate_AF, up_AF, *weights)
        return plan.per_token(y_AD.to(torch.promote_types(x_TD.dtype, torch.float32)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore
        x_TD, weight_A1, gate_AF, up_AF, *weights = ctx.saved_tensors
        plan: _Plan = ctx.plan
        experts = len(plan.counts)
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        g_AD = grad_TD.to(x_TD.dtype).index_select(0, plan.token_A)
        d_hidden_AF = torch.empty_like(gate_AF)
        for e, span in plan.spans():
            torch.mm(g_AD[span], weights[experts + e], out=d_hidden_AF[span])
        plain_AF, d_gate_AF, d_up_AF = _swiglu_backward(
            gate_AF.to(wide), up_AF.to(wide), d_hidden_AF.to(wide), weight_A1, ctx.limit
        )
        d_weight_A = (d_hidden_AF * plain_AF).sum(dim=1).to(weight_A1.dtype)
        hidden_AF = _through(ctx.cast, plain_AF.mul_(weight_A1).to(x_TD.dtype))
        x_AD = _through(ctx.cast, x_TD).index_select(0, plan.token_A)
        d_gate_AF, d_up_AF = d_gate_AF.to(x_TD.dtype), d_up_AF.to(x_TD.dtype)
        d_x_AD = torch.empty_like(x_AD)
        d_weights: list[Tensor | None] = [None] * len(weights)
        for e, span in plan.spans():
            gate_nF, up_nF = d_gate_AF[span], d_up_AF[span]
            torch.mm(gate_nF, weights[e], out=d_x_AD[span])
            d_x_AD[span].addmm_(up_nF, weights[2 * experts + e])
            d_weights[e] = gate_nF.T @ x_AD[span]
            d_weights[experts + e] = g_AD[span].T @ hidden_AF[span]
            d_weights[2 * experts + e] = up_nF.T @ x_AD[span]
        d_weight_TK = d_weight_A.index_select(0, plan.place_A).view(-1, plan.k)
        return plan.per_token(d_x_AD.to(wide)).to(x_TD.dtype), d_weight_TK, None, None, None, *d_weights


def _through(cast: Cast | None, x: Tensor) -> Tensor:
    return x if cast is None else cast(x)


def _swiglu_backward(
    gate_AF: Tensor, up_AF: Tensor, d_hidden_AF: Tensor, weight_A1: Tensor, limit: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The activation before its routing weight, and the gradients of gate and up; a clamped value has none."""
    inner_gate = inner_up = None
    if limit:
        inner_gate, inner_up = gate_AF <= limit, up_AF.abs() <= limit
        gate_AF, up_AF = gate_AF.clamp(max=limit), up_AF.clamp(-limit, limit)
    sigmoid_AF = gate_AF.sigmoid()
    silu_AF = gate_AF * sigmoid_AF
    d_plain_AF = d_hidden_AF * weight_A1
    # silu' = s + silu (1 - s)
    slope_AF = torch.addcmul(sigmoid_AF, silu_AF, 1 - sigmoid_AF)
    d_gate_AF, d_up_AF = (d_plain_AF * up_AF).mul_(slope_AF), d_plain_AF.mul_(silu_AF)
    if inner_gate is not None and inner_up is not None:
        d_gate_AF, d_up_AF = d_gate_AF.mul_(inner_gate), d_up_AF.mul_(inner_up)
    return silu_AF.mul_(up_AF), d_gate_AF, d_up_AF
