"""An expert, and the routed experts of a layer as tables of stored tensors (report 2.1).

Legend: D hidden size, E experts, F expert inner size, n tokens of one expert.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from dsv4.config import ModelConfig
from dsv4.kernels import moe as kernel
from dsv4.model.layers import KernelModule, LayerList, Linear, Numerics

MATRICES = ("w1", "w2", "w3")
_UNFOLDING = threading.Lock()  # of all models: a module with a lock of its own could not be copied


class Expert(KernelModule):
    """Clamped SwiGLU: w1 is the gate, w3 the linear part, w2 the way back."""

    def __init__(self, config: ModelConfig, numerics: Numerics) -> None:
        super().__init__()
        dim, inner, dtype = config.hidden_size, config.moe_intermediate_size, numerics.activations
        self.limit = config.swiglu_limit
        self.w1 = Linear(dim, inner, dtype)
        self.w2 = Linear(inner, dim, dtype)
        self.w3 = Linear(dim, inner, dtype)

    def forward(self, x_nD: Tensor, weight_n1: Tensor | None = None) -> Tensor:
        hidden_nF = kernel.clamped_swiglu(self.w1(x_nD), self.w3(x_nD), self.limit, self.impl)
        if weight_n1 is not None:
            hidden_nF = hidden_nF * weight_n1
        return self.w2(hidden_nF.to(x_nD.dtype))


class StoredExperts(LayerList, KernelModule):
    """The routed experts of a layer, loaded and not trained: six tables of tensors in place of E modules.

    A model of 11,000 experts would need 46,000 modules, which take longer to make than everything else of loading. Here
    the modules are made when something asks for one: an index, `parameters()`, `state_dict()`, `to()`, a copy. Until
    then `tables` holds the weights: "w1.weight", "w1.scale" and so on, one entry per expert. Float weights have no
    scales: None, or no table.
    """

    tables: Mapping[str, Sequence[Tensor | None]]

    def __init__(self, config: ModelConfig, numerics: Numerics) -> None:
        self.folded = False  # torch's own constructor sets `_modules`
        super().__init__()
        self.config, self.numerics = config, numerics
        self.tables, self.folded = {}, True

    def fill(self, tables: Mapping[str, Sequence[Tensor | None]]) -> None:
        """Use these tensors. Raises ValueError if a table has not one entry per expert."""
        for name, table in tables.items():
            if len(table) != self.config.n_routed_experts:
                raise ValueError(f"{name}: {len(table)} tensors for {self.config.n_routed_experts} experts")
        self.tables = tables

    def unfold(self) -> None:
        """Make the modules of all experts. Later calls do nothing; a call in another thread waits for the first."""
        with _UNFOLDING:
            if not self.folded:
                return
            vars(self)["_modules"].update((str(e), expert) for e, expert in enumerate(self._experts()))
            self.folded = False  # last: another thread sees tables or all modules
            self.tables = {}

    def _experts(self) -> list[Expert]:
        with torch.device("meta"):
            experts = [Expert(self.config, self.numerics) for _ in range(self.config.n_routed_experts)]
        for e, expert in enumerate(experts):
            for name in MATRICES:
                linear: Linear = getattr(expert, name)
                linear.impl = self.impl
                for part in ("weight", "scale"):
                    tensor = self.tables[key][e] if (key := f"{name}.{part}") in self.tables else None
                    if tensor is not None:
                        linear.register_parameter(part, nn.Parameter(tensor, requires_grad=False))
            expert.impl = self.impl
            expert.train(self.training)
        return experts

    # every way of torch to a child reads this attribute
    @property
    def _modules(self) -> dict[str, nn.Module | None]:  # pyrefly: ignore[bad-override-mutable-attribute]
        if vars(self).get("folded"):
            self.unfold()
        return vars(self)["_modules"]

    @_modules.setter
    def _modules(self, value: dict[str, nn.Module | None]) -> None:
        vars(self)["_modules"] = value

    # ... but these two
    def __getattr__(self, name: str) -> Any:
        if name.isdigit():
            self.unfold()
        return super().__getattr__(name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.unfold()
        return super().__reduce_ex__(protocol)

    def __len__(self) -> int:
        return self.config.n_routed_experts if self.folded else super().__len__()

    def train(self, mode: bool = True) -> Self:
        """As in torch; experts that have no modules yet get the mode when they are made."""
        if not self.folded:
            return super().train(mode)
        self.training = mode
        return self
