"""Mixture of experts: routing scores, the clamped SwiGLU, and running each token through its experts (report 2.1).

Legend: T tokens, D hidden size, E experts, K choices per token, F expert inner size.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from dsv4.kernels.autograd import node
from dsv4.kernels.backend import Implementation, dispatch
from dsv4.kernels.moe import native, reference, torch
from dsv4.kernels.moe.assignments import Assignments
from dsv4.kernels.moe.weights import EqualTensors, ExpertWeights

ExpertFunction = Callable[[int, Tensor, Tensor], Tensor]


def affinity(logits_TE: Tensor, impl: str | None = None) -> Tensor:
    """sqrt(softplus(logits)), fp32: the affinity that replaces V3's sigmoid."""
    return dispatch("affinity", impl, _AFFINITY, logits_TE)


def choose_experts(score_TE: Tensor, bias_E: Tensor, k: int, impl: str | None = None) -> Tensor:
    """Ids of the k experts with the largest score + bias, ids_TK. The bias only chooses (aux-loss-free balancing).

    Largest first; among equals the lowest id comes first.
    """
    return dispatch("choose_experts", impl, _CHOOSE_EXPERTS, score_TE, bias_E, k)


def expert_weights(score_TE: Tensor, ids_TK: Tensor, scale: float, impl: str | None = None) -> Tensor:
    """weights_TK = scale * score of the chosen / their sum."""
    return dispatch("expert_weights", impl, _EXPERT_WEIGHTS, score_TE, ids_TK, scale)


def clamped_swiglu(gate_TF: Tensor, up_TF: Tensor, limit: float, impl: str | None = None) -> Tensor:
    """silu(min(gate, limit)) * clip(up, -limit, limit) in fp32; limit 0 means no clamp."""
    return dispatch("clamped_swiglu", impl, _CLAMPED_SWIGLU, gate_TF, up_TF, limit)


def expert_mlp(
    x_TD: Tensor, ids_TK: Tensor, weight_TK: Tensor, weights: ExpertWeights, impl: str | None = None
) -> Tensor:
    """All experts of a layer: sum_k weight[t, k] * down(swiglu(gate(x[t]), up(x[t]))) of expert ids[t, k], fp32 [T, D].

    The weight multiplies the activation before the down projection. Every projection returns x's dtype, and with
    quantised weights casts its input to FP8, as `matmul.linear`. Each token's experts are added in the order of
    ids_TK, then the shared expert if `weights` has one. "native" is one call; a token's result depends on that token
    alone. Raises IndexError for an id that names no expert.
    """
    return dispatch("expert_mlp", impl, _EXPERT_MLP, x_TD, ids_TK, weight_TK, weights)


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
    cast: a function for the inputs of the three products (training for a quantised release), with the gradient of the
    identity. "torch" is one autograd node with its backward pass by hand; "native" is the same node, its products in
    native code.
    """
    return dispatch("routed_experts", impl, _ROUTED_EXPERTS, x_TD, ids_TK, weight_TK, w1, w2, w3, limit, cast)


def _and_reference(name: str, *faster: Implementation) -> tuple[Implementation, ...]:
    definition = getattr(reference, name)
    return *faster, Implementation("reference", definition, differentiable=definition)


_native_routed = partial(torch.routed_experts, products=native.NativeProducts)
_AFFINITY = _and_reference("affinity", Implementation("native", native.affinity, native.takes_affinity))
_CHOOSE_EXPERTS = _and_reference("choose_experts", Implementation("native", native.choose_experts, native.takes_choice))
_EXPERT_WEIGHTS = _and_reference(
    "expert_weights", Implementation("native", native.expert_weights, native.takes_weights)
)
_CLAMPED_SWIGLU = _and_reference(
    "clamped_swiglu",
    Implementation(
        "native", native.clamped_swiglu, native.takes_swiglu, node(native.clamped_swiglu, native.swiglu_backward)
    ),
)
_EXPERT_MLP = _and_reference("expert_mlp", Implementation("native", native.expert_mlp, native.takes_layer))
_ROUTED_EXPERTS = _and_reference(
    "routed_experts",
    Implementation("native", _native_routed, native.takes_training, _native_routed),
    Implementation("torch", torch.routed_experts, differentiable=torch.routed_experts),
)

__all__: Sequence[str] = (
    "Assignments",
    "EqualTensors",
    "ExpertWeights",
    "affinity",
    "choose_experts",
    "clamped_swiglu",
    "expert_mlp",
    "expert_weights",
    "routed_experts",
    "run_experts",
)
