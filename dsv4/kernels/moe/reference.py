"""Mixture of experts in plain torch.

Legend: T tokens, D hidden size, E experts, K choices per token, F expert inner size, A assignments sorted by expert.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dsv4.kernels.matmul import reference as matmul
from dsv4.kernels.moe.assignments import Assignments
from dsv4.kernels.moe.weights import ExpertWeights


def affinity(logits_TE: Tensor) -> Tensor:
    """See dsv4.kernels.moe.affinity."""
    return F.softplus(logits_TE).sqrt()


def choose_experts(score_TE: Tensor, bias_E: Tensor, k: int) -> Tensor:
    """See dsv4.kernels.moe.choose_experts. Not topk: what it returns among equals is not defined."""
    return (score_TE + bias_E).sort(dim=1, descending=True, stable=True).indices[:, :k]


def expert_weights(score_TE: Tensor, ids_TK: Tensor, scale: float) -> Tensor:
    """See dsv4.kernels.moe.expert_weights."""
    chosen_TK = score_TE.gather(1, ids_TK)
    return chosen_TK / chosen_TK.sum(dim=1, keepdim=True) * scale


def clamped_swiglu(gate_TF: Tensor, up_TF: Tensor, limit: float) -> Tensor:
    """See dsv4.kernels.moe.clamped_swiglu."""
    compute = torch.promote_types(gate_TF.dtype, torch.float32)
    gate_TF, up_TF = gate_TF.to(compute), up_TF.to(compute)
    if limit:
        gate_TF, up_TF = gate_TF.clamp(max=limit), up_TF.clamp(-limit, limit)
    return F.silu(gate_TF) * up_TF


def run_experts(
    x_TD: Tensor,
    ids_TK: Tensor,
    weight_TK: Tensor,
    experts: int,
    run: Callable[[int, Tensor, Tensor], Tensor],
) -> Tensor:
    """See dsv4.kernels.moe.run_experts."""
    compute = torch.promote_types(x_TD.dtype, torch.float32)
    assignments = Assignments.of(ids_TK, experts)
    x_AD, weight_A1 = assignments.rows(x_TD), assignments.weights(weight_TK)[:, None]
    y_AD = torch.cat([run(expert, x_AD[span], weight_A1[span]) for expert, span in assignments.spans()])
    return assignments.sums(y_AD.to(compute))


def expert_mlp(x_TD: Tensor, ids_TK: Tensor, weight_TK: Tensor, weights: ExpertWeights) -> Tensor:
    """See dsv4.kernels.moe.expert_mlp."""
    if ids_TK.numel() and not 0 <= int(ids_TK.min()) <= int(ids_TK.max()) < weights.routed:
        raise IndexError(f"expert_mlp: an expert id is not in 0..{weights.routed - 1}")

    def linear(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
        return matmul.linear(x if scale is not None else x.to(weight.dtype), weight, scale, True)

    def run(e: int, x_nD: Tensor, weight_n1: Tensor) -> Tensor:
        gate_nF, up_nF = linear(x_nD, weights.w1[e], weights.s1[e]), linear(x_nD, weights.w3[e], weights.s3[e])
        hidden_nF = clamped_swiglu(gate_nF, up_nF, weights.limit) * weight_n1
        return linear(hidden_nF.to(x_nD.dtype), weights.w2[e], weights.s2[e])

    if not len(x_TD):
        return x_TD.new_zeros(x_TD.shape, dtype=torch.float32)
    routed_TD = run_experts(x_TD, ids_TK, weight_TK, weights.routed, run)
    if weights.shared:
        routed_TD = routed_TD + run(weights.routed, x_TD, weight_TK.new_ones(len(x_TD), 1)).to(routed_TD.dtype)
    return routed_TD


def routed_experts(
    x_TD: Tensor,
    ids_TK: Tensor,
    weight_TK: Tensor,
    w1: Sequence[Tensor],
    w2: Sequence[Tensor],
    w3: Sequence[Tensor],
    limit: float,
    cast: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """See dsv4.kernels.moe.routed_experts."""

    def through(x: Tensor) -> Tensor:
        return x if cast is None else x + (cast(x) - x).detach()

    def run(e: int, x_nD: Tensor, weight_n1: Tensor) -> Tensor:
        x_nD = through(x_nD)
        hidden_nF = clamped_swiglu(x_nD @ w1[e].T, x_nD @ w3[e].T, limit) * weight_n1
        return through(hidden_nF.to(x_nD.dtype)) @ w2[e].T

    return run_experts(x_TD, ids_TK, weight_TK, len(w1), run)
