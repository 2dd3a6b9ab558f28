"""Routed experts split over ranks: the row of each token is sent to the ranks of its experts and returns weighted.

Rank r of P holds experts r * E / P up to (r + 1) * E / P. The router is on every rank and so is the shared expert.

Legend: T tokens, D hidden size, E experts, K choices per token, A assignments sorted by expert (as sent), R received
assignments, P ranks, L experts of a rank.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsv4.config import ModelConfig
from dsv4.distributed.collectives import exchange
from dsv4.distributed.mesh import Mesh
from dsv4.distributed.transformer import RankTransformer
from dsv4.kernels import moe as kernel
from dsv4.model.layers import KernelModule
from dsv4.model.moe import Expert, MoE
from dsv4.model.step import Step


def check(config: ModelConfig, ranks: int) -> None:
    """Raise ValueError unless every rank gets equally many experts."""
    if config.n_routed_experts % ranks:
        raise ValueError(f"scale.expert must divide n_routed_experts {config.n_routed_experts}, got {ranks}")


def split(model: RankTransformer, mesh: Mesh) -> None:
    """Keep this rank's share of every layer's experts, in place; nothing happens where the mesh has one expert rank."""
    ranks = mesh.scale.expert
    if ranks == 1:
        return
    check(model.config, ranks)
    for block in model.blocks:
        block.ffn = SplitMoE(block.ffn, mesh.group("expert"))


class SplitMoE(MoE):
    """A MoE whose experts lie on the ranks of a group. Parameters keep their names: expert 7 is experts.7 wherever it
    lies. Every rank of the group must call it, also with no tokens."""

    def __init__(self, whole: MoE, group: Any) -> None:
        KernelModule.__init__(self)
        self.impl, self.index, self.group = whole.impl, whole.index, group
        self.gate, self.shared_experts = whole.gate, whole.shared_experts
        here, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.per_rank = len(whole.experts) // self.ranks
        mine = range(here * self.per_rank, (here + 1) * self.per_rank)
        self.add_module("experts", nn.ModuleDict({str(e): whole.experts[e] for e in mine}))

    def forward(self, x_TD: Tensor, step: Step) -> Tensor:
        """See MoE.forward; the same path with and without gradients."""
        given_TK = None if step.regime.routes is None else step.regime.routes.get(self.index)
        score_TE, ids_TK, weight_TK = self.gate(x_TD, step.tokens_T, given_TK)
        if step.observer is not None:
            step.observer.routed(self.index, score_TE, ids_TK)
        routed_TD = self._routed(x_TD, ids_TK, weight_TK)
        return (routed_TD + self.shared_experts(x_TD).float()).to(x_TD.dtype)

    def _routed(self, x_TD: Tensor, ids_TK: Tensor, weight_TK: Tensor) -> Tensor:
        assignments = kernel.Assignments.of(ids_TK, self.ranks * self.per_rank)  # by expert, so by rank too
        counts_E = assignments.counts_E
        got_E = torch.empty_like(counts_E)  # of each rank in turn: how many for each expert here
        dist.all_to_all_single(got_E, counts_E, group=self.group)
        counts_PL, got_PL = counts_E.view(self.ranks, -1), got_E.view(self.ranks, -1)
        send, receive = counts_PL.sum(dim=1).tolist(), got_PL.sum(dim=1).tolist()
        x_RD = exchange(assignments.rows(x_TD), send, receive, self.group)
        weight_R = exchange(assignments.weights(weight_TK), send, receive, self.group)
        expert_R = torch.arange(self.per_rank, device=ids_TK.device).repeat(self.ranks).repeat_interleave(got_E)
        y_RD = self._run_here(x_RD, expert_R[:, None], weight_R[:, None])
        y_AD = exchange(y_RD, receive, send, self.group)
        return assignments.sums(y_AD)

    def _run_here(self, x_RD: Tensor, expert_RK: Tensor, weight_RK: Tensor) -> Tensor:
        """Outputs of this rank's experts for some rows, fp32; expert_RK counts from the first expert of this rank."""
        if not len(x_RD):
            # nothing to compute, but the backward pass must still exchange with the other ranks
            return x_RD.float() * weight_RK
        experts = [expert for expert in self.experts.children() if isinstance(expert, Expert)]
        w1, w2, w3 = ([getattr(expert, name).weight for expert in experts] for name in ("w1", "w2", "w3"))
        impl = "reference" if self.impl == "reference" else None
        first = experts[0]
        return kernel.routed_experts(x_RD, expert_RK, weight_RK, w1, w2, w3, first.limit, first.w1.cast, impl)
