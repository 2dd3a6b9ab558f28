"""Mixture of experts: routing scores, the clamped SwiGLU, and running each token through its experts (report 2.1).

T tokens, D hidden size, E experts, K experts per token, F expert inner size.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from dsv4.kernels.moe import reference

ExpertFunction = Callable[[int, Tensor, Tensor], Tensor]


def affinity(logits_TE: Tensor) -> Tensor:
    """sqrt(softplus(logits)), fp32: the affinity that replaces V3's sigmoid."""
    return reference.affinity(logits_TE)


def choose_experts(score_TE: Tensor, bias_E: Tensor, k: int) -> Tensor:
    """Ids of the k experts with the largest score + bias, ids_TK. The bias only chooses (aux-loss-free balancing)."""
    return (score_TE + bias_E).topk(k, dim=1).indices


def expert_weights(score_TE: Tensor, ids_TK: Tensor, scale: float) -> Tensor:
    """weights_TK = scale * score of the chosen / their sum."""
    return reference.expert_weights(score_TE, ids_TK, scale)


def clamped_swiglu(gate_TF: Tensor, up_TF: Tensor, limit: float) -> Tensor:
    """silu(min(gate, limit)) * clip(up, -limit, limit) in fp32; limit 0 means no clamp."""
    return reference.clamped_swiglu(gate_TF, up_TF, limit)


def run_experts(x_TD: Tensor, ids_TK: Tensor, weight_TK: Tensor, experts: int, run: ExpertFunction) -> Tensor:
    """sum_k run(ids[t, k], x[t], weight[t, k]), fp32 [T, D].

    `run(e, x_nD, weight_n1)` is expert e on its n tokens; the weight goes in because the release multiplies the
    activation before the down projection. Each token's experts are added in the order of ids_TK, so a token's sum
    does not depend on its neighbours. Experts without tokens are not run.
    """
    return reference.run_experts(x_TD, ids_TK, weight_TK, experts, run)


__all__: Sequence[str] = (
    "affinity",
    "choose_experts",
    "clamped_swiglu",
    "expert_weights",
    "run_experts",
)
