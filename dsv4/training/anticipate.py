"""Anticipatory routing and the recovery from spikes that switches it on (report 4.4).

While on, a step computes with today's parameters, but its tokens go to the experts that the parameters of `delay` steps
ago would have chosen: routers and experts no longer drive each other. A step's data is fetched `delay` steps early, its
expert ids are computed then with one forward pass and kept beside it; gate weights are today's. After a spike the run
goes back a little, stays in this mode for a while, then returns to normal. Delay, detector and duration are not
published.

T tokens, E experts, K experts per token.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv4.config import Routing
from dsv4.model.step import Regime
from dsv4.model.transformer import Transformer
from dsv4.training.batch import Batch
from dsv4.training.param_groups import Optimizers
from dsv4.training.schedule import Phase
from dsv4.training.spikes import Spike, SpikeDetector

Routes = dict[int, Tensor]  # by layer with a learned router: ids_TK


class _Recorder:
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
    recorder = _Recorder({s.index for s in (*config.layers, *config.mtp_layers) if s.routing is Routing.LEARNED})
    sequences = model.pack(list(batch.lengths))
    regime = Regime(dense=phase is not Phase.SPARSE)
    x_TSD = model.hidden(batch.tokens_T, sequences, observer=recorder, regime=regime)
    if model.mtp:
        model.mtp_hidden(x_TSD, torch.roll(batch.tokens_T, -1), sequences, observer=recorder, regime=regime)
    return recorder.routes


@dataclass(frozen=True, slots=True)
class RoutedBatch:
    """One micro-batch, and the expert ids to use: None = let the routers choose."""

    batch: Batch
    routes: Routes | None


class BatchQueue:
    """Batches by step; while anticipating, fetched and routed `delay` steps before they are used.

    fetch(step) gives the micro-batches of a step and must give the same ones when asked again. route(batch) computes
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
        """What step `step` learns from; call before its update, once per step, in order.

        The first `delay` steps after switching on find nothing prepared and use the parameters of that moment, the
        oldest there are.
        """
        if not anticipating:
            self.clear()
            return [RoutedBatch(batch, None) for batch in self._fetch(step)]
        for ahead in range(step, step + self.delay + 1):
            if ahead not in self._waiting:
                self._waiting[ahead] = [RoutedBatch(batch, self._route(batch)) for batch in self._fetch(ahead)]
        return self._waiting.pop(step)

    def clear(self) -> None:
        """Forget what was prepared: after going back, parameters and steps are others."""
        self._waiting = {}


class Diverged(RuntimeError):
    """A run that going back does not save."""


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """snapshot_every, snapshots: how often the state is kept in memory, and how many. margin: how many steps before a
    spike a snapshot must lie to be trusted. hold: how many steps the mode stays on. attempts: spikes in a row, without
    `hold` calm steps between, before the run is given up."""

    snapshot_every: int = 16
    snapshots: int = 2
    margin: int = 4
    hold: int = 64
    attempts: int = 3

    def __post_init__(self) -> None:
        for name in ("snapshot_every", "snapshots", "hold", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.margin < 0:
            raise ValueError(f"margin must be at least 0, got {self.margin}")


class Recovery:
    """Watches a run, takes it back after a spike, and says when routing is anticipatory.

        while step < steps:
            recovery.before_step(step)
            for part in queue.take(step, recovery.anticipating(step)): ...        # loss, backward
            back = recovery.judge(step, loss=loss, grad_norm=norm)
            if back is not None:                                                  # state is restored already
                step = back; queue.clear(); continue
            optimizers.step(); step += 1

    capture() gives a copy of everything a step changes, restore(copy) puts it back.
    """

    def __init__(
        self,
        detector: SpikeDetector,
        capture: Callable[[], Any],
        restore: Callable[[Any], None],
        settings: RecoverySettings = RecoverySettings(),
    ) -> None:
        self.detector, self.settings = detector, settings
        self._capture, self._restore = capture, restore
        self._snapshots: list[tuple[int, Any]] = []
        self._until, self._attempts = 0, 0
        self._step: int | None = None  # of the last spike
        self.spikes: list[Spike] = []

    def anticipating(self, step: int) -> bool:
        return step < self._until

    def route_ahead(self, until: int) -> None:
        """Anticipate up to this step, as after a spike."""
        self._until = until

    def before_step(self, step: int) -> None:
        """Keep a snapshot if one is due. There is always one of the first step."""
        due = not self._snapshots or step - self._snapshots[-1][0] >= self.settings.snapshot_every
        if due:
            self._snapshots = [*self._snapshots, (step, self._capture())][-self.settings.snapshots :]
        if not self.anticipating(step):
            self._attempts = 0

    def judge(self, step: int, **values: float) -> int | None:
        """None to go on; after a spike the step to go on from, with the state of that step restored.

        A step that spikes again after the return, with a finite value, is let pass: its batch is to blame, and its
        gradient is clipped. Call with loss and gradient norm before the update. Raises Diverged after too many spikes
        in a row.
        """
        spike = self.detector.check(step, **values)
        if spike is None or (step == self._step and math.isfinite(spike.value)):
            return None
        self._step = step
        self.spikes.append(spike)
        self._attempts += 1
        if self._attempts > self.settings.attempts:
            raise Diverged(f"{spike}; going back {self.settings.attempts} times did not help")
        trusted = [kept for kept in self._snapshots if kept[0] <= step - self.settings.margin]
        back, state = trusted[-1] if trusted else self._snapshots[0]
        self._snapshots = [kept for kept in self._snapshots if kept[0] <= back]
        self._restore(state)
        self.route_ahead(step + self.settings.hold)
        return back

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints. Snapshots are not among it: after a restart the checkpoint itself is the first one."""
        own = {"until": self._until, "attempts": self._attempts, "step": self._step}
        return {**own, "detector": self.detector.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._until, self._attempts, self._step = state["until"], state["attempts"], state.get("step")
        self.detector.load_state_dict(state["detector"])
        self._snapshots = []


def capture_state(model: Transformer, optimizers: Optimizers) -> dict[str, Any]:
    """A copy in memory of weights, router biases and optimiser states."""
    return _copy({"model": model.state_dict(), "optimizers": optimizers.state_dict()})


def restore_state(model: Transformer, optimizers: Optimizers, state: dict[str, Any]) -> None:
    """Put a copy of `capture_state` back, bit for bit; the copy stays usable."""
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(_copy(state["optimizers"]))


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(part) for part in value)
    return value
