"""DeepSeekMoE with hash and learned routing (report 2.1).

Legend: T tokens, D hidden size, E experts, K choices per token, n tokens of one expert.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from dsv4.config import LayerSpec, ModelConfig, Routing
from dsv4.kernels import matmul
from dsv4.kernels import moe as kernel
from dsv4.kernels.backend import Implementation, dispatch
from dsv4.model.expert import MATRICES, Expert, StoredExperts
from dsv4.model.layers import KernelModule, LayerList, Numerics, walk
from dsv4.model.step import Step
from dsv4.model.watch import Watch, alien


class Gate(KernelModule):
    """Affinities and the choice of experts. Hash layers look the ids up by token; weights are learned in both."""

    def __init__(self, config: ModelConfig, spec: LayerSpec) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        if spec.routing is Routing.HASH:
            shape = (config.vocab_size, config.num_experts_per_tok)
            self.register_buffer("tid2eid", torch.zeros(shape, dtype=torch.int64))
            self.register_parameter("bias", None)
        else:
            self.tid2eid = None
            # moved by the balancing rule, never by a gradient
            self.bias = nn.Parameter(torch.zeros(config.n_routed_experts), requires_grad=False)

    def forward(self, x_TD: Tensor, tokens_T: Tensor, given_TK: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(score_TE, ids_TK, weight_TK), fp32. `given_TK`: ids to use in place of the learned choice, but in rows that
        are -1."""
        score_TE = kernel.affinity(matmul.linear(x_TD.float(), self.weight, impl=self.impl), self.impl)
        if self.tid2eid is not None:
            ids_TK = self.tid2eid[tokens_T]
        elif given_TK is None:
            ids_TK = self._choose(score_TE)
        else:
            ids_TK, open_T1 = given_TK.to(torch.int64), given_TK[:, :1] < 0
            if bool(open_T1.any()):
                ids_TK = torch.where(open_T1, self._choose(score_TE), ids_TK)
        return score_TE, ids_TK, kernel.expert_weights(score_TE, ids_TK, self.config.routed_scaling_factor, self.impl)

    def _choose(self, score_TE: Tensor) -> Tensor:
        bias_E, k = self.get_parameter("bias"), self.config.num_experts_per_tok
        return kernel.choose_experts(score_TE.detach(), bias_E, k, self.impl)


class MoE(KernelModule):
    """Routed experts plus one shared expert. stored_experts: the routed ones are tables until modules are needed."""

    def __init__(
        self, config: ModelConfig, spec: LayerSpec, numerics: Numerics, *, stored_experts: bool = False
    ) -> None:
        super().__init__()
        self.index = spec.index
        self.gate = Gate(config, spec)
        self.experts = (
            StoredExperts(config, numerics)
            if stored_experts
            else LayerList(Expert(config, numerics) for _ in range(config.n_routed_experts))
        )
        self.shared_experts = Expert(config, numerics)
        self._kept = _Gathered()

    @property
    def all_experts(self) -> list[Expert]:
        """The routed experts, then the shared one."""
        return cast("list[Expert]", [*self.experts, self.shared_experts])

    def forward(self, x_TD: Tensor, step: Step) -> Tensor:
        given_TK = None if step.regime.routes is None else step.regime.routes.get(self.index)
        score_TE, ids_TK, weight_TK = self.gate(x_TD, step.tokens_T, given_TK)
        if step.observer is not None:
            step.observer.routed(self.index, score_TE, ids_TK)
        return dispatch("experts", None, _EXPERTS, self, x_TD, ids_TK, weight_TK).to(x_TD.dtype)

    def _together(self, x_TD: Tensor, ids_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """One call of a kernel that reads the weights of all experts."""
        return kernel.expert_mlp(x_TD, ids_TK, weight_TK, self.weights(), self.impl)

    def _one_by_one(self, x_TD: Tensor, ids_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """A call of each expert's module."""
        routed_TD = kernel.run_experts(x_TD, ids_TK, weight_TK, len(self.experts), self._run)
        return routed_TD + self.shared_experts(x_TD).float()

    def _with_gradients(self, x_TD: Tensor, ids_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """One autograd node over the routed experts. Experts with adapters, and with weights of another dtype than x
        (quantised ones too), are called one by one."""
        experts = self.all_experts[:-1]
        first = experts[0]
        adapted = any(linear.adapter is not None for e in experts for linear in (e.w1, e.w2, e.w3))
        if adapted or first.w1.scale is not None or first.w1.weight.dtype != x_TD.dtype:
            return self._one_by_one(x_TD, ids_TK, weight_TK)
        w1, w2, w3 = ([getattr(expert, name).weight for expert in experts] for name in ("w1", "w2", "w3"))
        impl = "reference" if self.impl == "reference" else None
        routed_TD = kernel.routed_experts(x_TD, ids_TK, weight_TK, w1, w2, w3, first.limit, first.w1.cast, impl)
        return routed_TD + self.shared_experts(x_TD).float()

    def _run(self, expert: int, x_nD: Tensor, weight_n1: Tensor) -> Tensor:
        return self.experts[expert](x_nD, weight_n1)

    def alien(self) -> str | None:
        """The reason why the experts must be called one by one instead of being read: hooks or other code."""
        self._look()
        return self._kept.alien

    def weights(self) -> kernel.ExpertWeights:
        """The weights of all experts, gathered once, and again after a weight was moved, replaced or loaded."""
        self._look()
        if self._kept.weights is None:
            lists = (self._gather(name, part) for part in ("weight", "scale") for name in MATRICES)
            self._kept.weights = kernel.ExpertWeights(*lists, limit=self.shared_experts.limit, shared=True)
        return self._kept.weights

    def _gather(self, name: str, part: str) -> Sequence[Any]:
        """One matrix of every expert, or its scale or None; that of the shared expert last."""
        shared = getattr(getattr(self.shared_experts, name), part)
        tables = self.experts.tables if isinstance(self.experts, StoredExperts) else {}
        if not (isinstance(self.experts, StoredExperts) and self.experts.folded):  # asked after the tables were taken
            return [*(getattr(getattr(expert, name), part) for expert in self.experts), shared]
        table = tables.get(f"{name}.{part}", [None] * len(self.experts))
        return table.followed_by(shared) if isinstance(table, kernel.EqualTensors) else [*table, shared]

    def _look(self) -> None:
        kept = self._kept
        if kept.watch.changed():
            kept.watch.look(self.experts, self.shared_experts)
            kept.alien, kept.weights = self._why_called(), None

    def _why_called(self) -> str | None:
        reason = alien(self.experts, self.shared_experts)
        experts = (m for root in (self.experts, self.shared_experts) for _, m in walk(root) if isinstance(m, Expert))
        if reason is None and len({(expert.limit, expert.impl) for expert in experts}) > 1:
            return "the experts' settings differ"
        return reason


_EXPERTS = (
    Implementation("together", MoE._together, lambda moe, *inputs: moe.alien()),
    Implementation("one by one", MoE._one_by_one, differentiable=MoE._with_gradients),
)


@dataclass(slots=True)
class _Gathered:
    """The gathered experts of a MoE, valid while the experts are unchanged. It is not an attribute of the module,
    because setting one counts as a change."""

    watch: Watch = field(default_factory=Watch)
    weights: kernel.ExpertWeights | None = None
    alien: str | None = None

    def __reduce__(self) -> tuple:
        return type(self), ()  # a copied model gathers its weights again
