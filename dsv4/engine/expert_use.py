"""How many tokens each expert got since an engine was made, for its report.

T tokens of a step, E experts, K choices.
"""

import torch
from torch import Tensor

from dsv4.engine.trace import StepTrace
from dsv4.model.transformer import Transformer


class ExpertUse:
    """Counts by layer of the backbone, where the model is. The fused step adds to `counts` itself; a step that runs op
    by op has an observer of `watching` for it."""

    def __init__(self, model: Transformer) -> None:
        experts = model.config.n_routed_experts
        self.counts: dict[int, Tensor] = {
            spec.index: torch.zeros(experts, dtype=torch.int64, device=model.device) for spec in model.config.layers
        }

    def watching(self, trace: StepTrace | None) -> "StepObserver":
        """An observer that counts the choices of one step, and passes them on to its trace."""
        return StepObserver(self.counts, trace)

    def by_layer(self) -> dict[int, list[int]]:
        """The counts as plain numbers."""
        return {layer: count_E.tolist() for layer, count_E in self.counts.items()}


class StepObserver:
    """The observer of one pass: see dsv4.model.step.Observer."""

    def __init__(self, counts: dict[int, Tensor], trace: StepTrace | None) -> None:
        self._counts, self._trace = counts, trace

    def routed(self, layer: int, score_TE: Tensor, ids_TK: Tensor) -> None:
        """Count the choices of one layer."""
        if (count_E := self._counts.get(layer)) is not None:
            # NOTE: nothing here waits for a card. Experts of a changed model that the configuration does not have add 0
            ids, last = ids_TK.flatten(), len(count_E) - 1
            count_E.index_add_(0, ids.clamp(max=last), (ids <= last).to(count_E.dtype))
        if self._trace is not None:
            self._trace.routed(layer, score_TE, ids_TK)
