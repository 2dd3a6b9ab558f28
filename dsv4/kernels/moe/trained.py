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

from dsv4.kernels.moe import cpu
from dsv4.kernels.moe.grouped import Groups, swiglu_backward
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
    native: bool = False,
) -> Tensor:
    """See dsv4.kernels.moe.routed_experts. `native`: products and the activation's gradient in native code."""
    order_A = ids_TK.flatten().argsort(stable=True)
    place_A = torch.empty_like(order_A)
    place_A[order_A] = torch.arange(order_A.numel(), device=order_A.device)
    plan = _Plan(order_A, place_A, torch.bincount(ids_TK.flatten(), minlength=len(w1)).tolist(), ids_TK.shape[1])
    run = _NativeProducts(Groups(plan.counts)) if native else _Products(plan)
    return _Experts.apply(x_TD, weight_TK, plan, run, limit, cast, *w1, *w2, *w3)  # pyrefly: ignore


class _Products:
    """What an expert layer multiplies, by torch, an expert after the other."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan

    def rows(self, a_AK: Tensor, weights: Sequence[Tensor], out_AN: Tensor, *, turned: bool, add: bool = False) -> None:
        """out = (or +=) each expert's rows times weight[N, K]^T; with `turned` times weight[K, N]."""
        for e, span in self._plan.spans():
            right = weights[e] if turned else weights[e].T
            if add:
                out_AN[span].addmm_(a_AK[span], right)
            else:
                torch.mm(a_AK[span], right, out=out_AN[span])

    def weights(self, a_AM: Tensor, b_AN: Tensor) -> list[Tensor | None]:
        """a^T b over each expert's rows."""
        made: list[Tensor | None] = [None] * len(self._plan.counts)
        for e, span in self._plan.spans():
            made[e] = a_AM[span].T @ b_AN[span]
        return made

    def activation(
        self, gate_AF: Tensor, up_AF: Tensor, grad_AF: Tensor, weight_A: Tensor, limit: float
    ) -> tuple[Tensor, ...]:
        """hidden = swiglu * weight, and the gradients of gate, up and weight given that of hidden."""
        return _swiglu_backward(gate_AF, up_AF, grad_AF, weight_A, limit)


class _NativeProducts(_Products):
    """The same in native code."""

    def __init__(self, groups: Groups) -> None:
        self.rows, self.weights = groups.rows, groups.weights  # pyrefly: ignore

    def activation(
        self, gate_AF: Tensor, up_AF: Tensor, grad_AF: Tensor, weight_A: Tensor, limit: float
    ) -> tuple[Tensor, ...]:
        return swiglu_backward(gate_AF, up_AF, grad_AF, weight_A, limit)  # pyrefly: ignore


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weight_TK: Tensor,
        plan: _Plan,
        run: _Products,
        limit: float,
        cast: Cast | None,
        *weights: Tensor,
    ) -> Tensor:
        w1, w2, w3 = _thirds(weights)
        x_AD = _through(cast, x_TD).index_select(0, plan.token_A)
        gate_AF = x_AD.new_empty(len(x_AD), w1[0].shape[0])
        up_AF, y_AD = torch.empty_like(gate_AF), torch.empty_like(x_AD)
        run.rows(x_AD, w1, gate_AF, turned=False)
        run.rows(x_AD, w3, up_AF, turned=False)
        weight_A = weight_TK.flatten().index_select(0, plan.order_A)
        hidden_AF = _through(cast, (_activation(gate_AF, up_AF, limit) * weight_A[:, None]).to(x_TD.dtype))
        run.rows(hidden_AF, w2, y_AD, turned=False)
        ctx.plan, ctx.run, ctx.limit, ctx.cast = plan, run, limit, cast
        ctx.save_for_backward(x_TD, weight_A, gate_AF, up_AF, *weights)
        return plan.per_token(y_AD.to(torch.promote_types(x_TD.dtype, torch.float32)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore
        x_TD, weight_A, gate_AF, up_AF, *weights = ctx.saved_tensors
        plan, run = ctx.plan, ctx.run
        w1, w2, w3 = _thirds(weights)
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        g_AD = grad_TD.to(x_TD.dtype).index_select(0, plan.token_A)
        d_hidden_AF = torch.empty_like(gate_AF)
        run.rows(g_AD, w2, d_hidden_AF, turned=True)
        hidden_AF, d_gate_AF, d_up_AF, d_weight_A = run.activation(
            gate_AF.to(wide), up_AF.to(wide), d_hidden_AF.to(wide), weight_A.to(wide), ctx.limit
        )
        hidden_AF = _through(ctx.cast, hidden_AF.to(x_TD.dtype))
        x_AD = _through(ctx.cast, x_TD).index_select(0, plan.token_A)
        d_gate_AF, d_up_AF = d_gate_AF.to(x_TD.dtype), d_up_AF.to(x_TD.dtype)
        d_x_AD = torch.empty_like(x_AD)
        run.rows(d_gate_AF, w1, d_x_AD, turned=True)
        run.rows(d_up_AF, w3, d_x_AD, turned=True, add=True)
        d_weights = (run.weights(d_gate_AF, x_AD), run.weights(g_AD, hidden_AF), run.weights(d_up_AF, x_AD))
        d_weight_TK = d_weight_A.to(weight_A.dtype).index_select(0, plan.place_A).view(-1, plan.k)
        d_x_TD = plan.per_token(d_x_AD.to(wide)).to(x_TD.dtype)
        return d_x_TD, d_weight_TK, None, None, None, None, *(w for third in d_weights for w in third)


def _thirds(weights: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    """The experts' first, second and third matrices."""
    size = len(weights) // 3
    return tuple(weights[at : at + size] for at in range(0, 3 * size, size))


def _activation(gate_AF: Tensor, up_AF: Tensor, limit: float) -> Tensor:
    run = cpu.clamped_swiglu if cpu.plain(gate_AF, up_AF) else clamped_swiglu
    return run(gate_AF, up_AF, limit)


def _through(cast: Cast | None, x: Tensor) -> Tensor:
    return x if cast is None else cast(x)


def _swiglu_backward(
    gate_AF: Tensor, up_AF: Tensor, d_hidden_AF: Tensor, weight_A: Tensor, limit: float
) -> tuple[Tensor, ...]:
    """The activation times its routing weight, and the gradients of gate, up and weight; a clamped value has none."""
    inner_gate = inner_up = None
    if limit:
        inner_gate, inner_up = gate_AF <= limit, up_AF.abs() <= limit
        gate_AF, up_AF = gate_AF.clamp(max=limit), up_AF.clamp(-limit, limit)
    sigmoid_AF = gate_AF.sigmoid()
    silu_AF = gate_AF * sigmoid_AF
    d_plain_AF = d_hidden_AF * weight_A[:, None]
    # silu' = s + silu (1 - s)
    slope_AF = torch.addcmul(sigmoid_AF, silu_AF, 1 - sigmoid_AF)
    d_gate_AF, d_up_AF = (d_plain_AF * up_AF).mul_(slope_AF), d_plain_AF.mul_(silu_AF)
    if inner_gate is not None and inner_up is not None:
        d_gate_AF, d_up_AF = d_gate_AF.mul_(inner_gate), d_up_AF.mul_(inner_up)
    plain_AF = silu_AF.mul_(up_AF)
    d_weight_A = (d_hidden_AF * plain_AF).sum(dim=1)
    return plain_AF.mul_(weight_A[:, None]), d_gate_AF, d_up_AF, d_weight_A
