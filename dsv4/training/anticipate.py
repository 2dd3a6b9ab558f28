"""Anticipatory routing (report 4.4), which the recovery from spikes switches on (`recovery.py`).

While on, a step computes with today's parameters, but its tokens go to the experts that the parameters of `delay` steps
ago would have chosen: routers and experts no longer drive each other. A step's data is fetched `delay` steps early, its
expert ids are computed then with one forward pass and kept beside it; gate weights are today's. The report does not
publish the delay.

Legend: T tokens, S streams, D hidden size, E experts, K choices per token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.config import Routing
from dsv4.model.step import Regime
from dsv4.model.transformer import Transformer
from dsv4.training.batch import Batch
from dsv4.training.schedule import Phase

Routes = dict[int, Tensor]  # by layer with a learned router: ids_TK


class _RouteRecorder:
    def __init__(self, layers: set[int]) -> None:
        self._layers = layers
        self.routes: Routes = {}

    def routed(self, layer: int, score_TE: Tensor, ids_TK: Tensor) -> None:
        if layer in self._layers:
            self.routes[layer] = ids_TK


@torch.no_grad()
def routes_of(model: Transformer, batch: Batch, phase: Phase = Phase.SPARSE) -> Routes:
    """The experts that the model's routers choose for a batch now, prediction block included: one forward pass."""
    config = model.config
    recorder = _RouteRecorder({s.index for s in (*config.layers, *config.mtp_layers) if s.routing is Routing.LEARNED})
    sequences = model.pack(list(batch.lengths))
    regime = Regime(dense=phase is not Phase.SPARSE)
    x_TSD = model.hidden(batch.tokens_T, sequences, observer=recorder, regime=regime)
    if model.predictors:
        model.mtp_hidden(x_TSD, torch.roll(batch.tokens_T, -1), sequences, observer=recorder, regime=regime)
    return recorder.routes


@dataclass(frozen=True, slots=True)
class RoutedBatch:
    """One micro-batch, and the expert ids to use: None = let the routers choose."""

    batch: Batch
    routes: Routes | None


class BatchQueue:
    """Batches by step; while anticipating, fetched and routed `delay` steps before they are used.

    fetch(step) returns the micro-batches of a step, the same ones for every call. route(batch) computes
    expert ids with the parameters as they are when it is called.
    """

    def __init__(
        self, fetch: Callable[[int], Sequence[Batch]], route: Callable[[Batch], Routes], delay: int = 4
    ) -> None:
        if delay < 1:
            raise ValueError(f"delay must be at least 1 step, got {delay}")
        self.delay = delay
        self._fetch, self._route = fetch, route
        self._waiting: dict[int, list[RoutedBatch]] = {}

    def take(self, step: int, anticipating: bool) -> list[RoutedBatch]:
        """The micro-batches of step `step`; call before its update, once per step, in order.

        For the first `delay` steps after switching on nothing is prepared: they use the parameters of that moment.
        """
        if not anticipating:
            self.clear()
            return [RoutedBatch(batch, None) for batch in self._fetch(step)]
        for ahead in range(step, step + self.delay + 1):
            if ahead not in self._waiting:
                self._waiting[ahead] = [RoutedBatch(batch, self._route(batch)) for batch in self._fetch(ahead)]
        return self._waiting.pop(step)

    def clear(self) -> None:
        """Forget prepared batches: after a return to a snapshot their parameters and steps are wrong."""
        self._waiting = {}
