"""The divergence from all logits at once, differentiated by torch.

Legend: T tokens, D hidden size, V vocabulary, K choices per token.
"""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from dsv4.kernels.distill_loss import Divergence


def distill_loss(
    x_TD: Tensor,
    weight_VD: Tensor,
    teacher_TD: Tensor,
    teacher_VD: Tensor,
    row_weight_T: Tensor,
    divergence: "Divergence",
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See dsv4.kernels.distill_loss.distill_loss; row_weight_T is already divided by the total."""
    compute = row_weight_T.dtype
    log_p_TV = (x_TD.to(compute) @ weight_VD.to(compute).T).log_softmax(dim=1)
    log_q_TV = (teacher_TD.to(compute) @ teacher_VD.to(compute).T).log_softmax(dim=1)
    value_T = _divergence(log_p_TV, log_q_TV, divergence)
    loss = (value_T * row_weight_T).masked_fill(row_weight_T == 0, 0).sum()
    return loss, value_T.detach(), -(log_p_TV.exp() * log_p_TV).sum(dim=1).detach()


def _divergence(log_p_TV: Tensor, log_q_TV: Tensor, divergence: "Divergence") -> Tensor:
    p_TV, q_TV = log_p_TV.exp(), log_q_TV.exp()
    if divergence.kind == "forward":
        return (q_TV * (log_q_TV - log_p_TV)).sum(dim=1)
    if divergence.kind == "jsd":
        beta = divergence.beta
        log_m_TV = (beta * q_TV + (1 - beta) * p_TV).log()
        return (beta * q_TV * (log_q_TV - log_m_TV) + (1 - beta) * p_TV * (log_p_TV - log_m_TV)).sum(dim=1)
    ratio_TV = log_p_TV - log_q_TV
    if divergence.top_k:
        ids_TK = log_p_TV.topk(min(divergence.top_k, log_p_TV.shape[1]), dim=1).indices
        p_TV, ratio_TV = p_TV.gather(1, ids_TK), ratio_TV.gather(1, ids_TK)
        if divergence.detached:
            ratio_TV = ratio_TV.detach()
    return (p_TV * ratio_TV).sum(dim=1)
