"""Mixture of experts: routing scores, the clamped SwiGLU, and running each token through its experts (report 2.1).

T tokens, D hidden size, E experts, K experts per token, F expert inner size.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from dsv4.kernels.backend import choose
from dsv4.kernels.moe import cpu, grouped, reference, trained
from dsv4.kernels.moe.weights import ExpertWeights

ExpertFunction = Callable[[int, Tensor, Tensor], Tensor]


def affinity(logits_TE: Tensor, impl: str | None = None) -> Tensor:
    """sqrt(softplus(logits)), fp32: the affinity that replaces V3's sigmoid."""
    return choose("affinity", impl, _AFFINITY, native=cpu.plain(logits_TE))(logits_TE)


def choose_experts(score_TE: Tensor, bias_E: Tensor, k: int, impl: str | None = None) -> Tensor:
    """Ids of the k experts with the largest score + bias, ids_TK. The bias only chooses (aux-loss-free balancing).

    Largest first; among equals the lowest id comes first.
    """
    native = cpu.plain(score_TE, bias_E)
    return choose("choose_experts", impl, _CHOOSE, native=native)(score_TE, bias_E, k)


def expert_weights(score_TE: Tensor, ids_TK: Tensor, scale: float, impl: str | None = None) -> Tensor:
    """weights_TK = scale * score of the chosen / their sum."""
    native = cpu.plain(score_TE) and ids_TK.dtype == torch.int64
    return choose("expert_weights", impl, _WEIGHTS, native=native)(score_TE, ids_TK, scale)


def clamped_swiglu(gate_TF: Tensor, up_TF: Tensor, limit: float, impl: str | None = None) -> Tensor:
    """silu(min(gate, limit)) * clip(up, -limit, limit) in fp32; limit 0 means no clamp."""
    if impl is None and torch.is_grad_enabled() and grouped.usable(gate_TF, up_TF) and gate_TF.shape == up_TF.shape:
        return grouped.clamped_swiglu(gate_TF, up_TF, limit)
    native = cpu.plain(gate_TF, up_TF) and gate_TF.shape == up_TF.shape
    return choose("clamped_swiglu", impl, _SWIGLU, native=native)(gate_TF, up_TF, limit)


def expert_mlp(
    x_TD: Tensor, ids_TK: Tensor, weight_TK: Tensor, weights: ExpertWeights, impl: str | None = None
) -> Tensor:
    """All experts of a layer: sum_k weight[t, k] * down(swiglu(gate(x[t]), up(x[t]))) of expert ids[t, k], fp32 [T, D].

    The weight multiplies the activation before the down projection. Every projection returns x's dtype, and with
    quantised weights casts its input to FP8, as `matmul.linear`. Each token's experts are added in the order of
    ids_TK, then the shared expert if `weights` has one. "cpu" does it in one call; a token's result depends on that
    token alone. Raises IndexError for an id that names no expert.
    """
    native = cpu.usable(x_TD, ids_TK, weight_TK, weights)
    return choose("expert_mlp", impl, _EXPERT_MLP, native=native)(x_TD, ids_TK, weight_TK, weights)


def run_experts(x_TD: Tensor, ids_TK: Tensor, weight_TK: Tensor, experts: int, run: ExpertFunction) -> Tensor:
    """sum_k run(ids[t, k], x[t], weight[t, k]), fp32 [T, D].

    `run(e, x_nD, weight_n1)` is expert e on its n tokens; the weight goes in because the release multiplies the
    activation before the down projection. Each token's experts are added in the order of ids_TK, so a token's sum
    does not depend on its neighbours. Experts without tokens are not run.
    """
    return reference.run_experts(x_TD, ids_TK, weight_TK, experts, run)


def routed_experts(
    x_TD: Tensor,
    ids_TK: Tensor,
    weight_TK: Tensor,
    w1: Sequence[Tensor],
    w2: Sequence[Tensor],
    w3: Sequence[Tensor],
    limit: float,
    cast: Callable[[Tensor], Tensor] | None = None,
    impl: str | None = None,
) -> Tensor:
    """The routed part of `expert_mlp` with gradients: float weights, one list entry per expert, fp32 [T, D].

    Differentiable in x, the routing weights and every expert's matrices; an expert without tokens gets no gradient.
    cast: what the inputs of the three products go through (training for a quantised release); its gradient is taken for
    the identity's. "trained" is one autograd node with its backward pass by hand; "cpu" is the same node, its products
    in native code.
    """
    run = choose("routed_experts", impl, _ROUTED, native=grouped.usable(x_TD, weight_TK, *w1, *w2, *w3))
    return run(x_TD, ids_TK, weight_TK, w1, w2, w3, limit, cast)


_ROUTED: dict[str, Callable[..., Tensor]] = {
    "cpu": partial(trained.routed_experts, native=True),
    "trained": trained.routed_experts,
    "reference": reference.routed_experts,
}
_AFFINITY = {"cpu": cpu.affinity, "reference": reference.affinity}
_CHOOSE = {"cpu": cpu.choose_experts, "reference": reference.choose_experts}
_WEIGHTS = {"cpu": cpu.expert_weights, "reference": reference.expert_weights}
_SWIGLU = {"cpu": cpu.clamped_swiglu, "reference": reference.clamped_swiglu}
_EXPERT_MLP = {"cpu": cpu.expert_mlp, "reference": reference.expert_mlp}

__all__: Sequence[str] = (
    "ExpertWeights",
    "affinity",
    "choose_experts",
    "clamped_swiglu",
    "expert_mlp",
    "expert_weights",
    "routed_experts",
    "run_experts",
)
