"""Recovery from spikes (report 4.4): after a spike the run returns to a snapshot and uses Anticipatory Routing
(`anticipate.py`) for some steps. The report publishes neither the detector nor the number of steps."""

import math
from collections.abc import Callable
from typing import Any

from dsv4.training.settings import RecoverySettings
from dsv4.training.spikes import Spike, SpikeDetector


class Diverged(RuntimeError):
    """The loss of a run keeps spiking although the run has returned to snapshots."""


class Recovery:
    """Watches a run, returns it to a snapshot after a spike, and decides when routing is anticipatory.

        while step < steps:
            recovery.before_step(step)
            for part in queue.take(step, recovery.anticipating(step)): ...        # loss, backward
            back = recovery.judge(step, loss=loss, grad_norm=norm)
            if back is not None:                                                  # state is restored already
                step = back; queue.clear(); continue
            optimizers.step(); step += 1

    capture() returns a copy of everything that a step changes, restore(copy) puts it back.
    """

    def __init__(
        self,
        detector: SpikeDetector,
        capture: Callable[[], Any],
        restore: Callable[[Any], None],
        settings: RecoverySettings,
    ) -> None:
        self.detector, self.settings = detector, settings
        self._capture, self._restore = capture, restore
        self._snapshots: list[tuple[int, Any]] = []
        self._until, self._attempts = 0, 0
        self._returned: set[int] = set()  # steps whose spikes made the run return, since it was calm
        self.spikes: list[Spike] = []

    def anticipating(self, step: int) -> bool:
        return step < self._until

    def route_ahead(self, until: int) -> None:
        """Use Anticipatory Routing up to this step, as after a spike."""
        self._until = until

    def before_step(self, step: int) -> None:
        """Take a snapshot if one is due. The first step always gets one."""
        due = not self._snapshots or step - self._snapshots[-1][0] >= self.settings.snapshot_every
        if due:
            self._snapshots = [*self._snapshots, (step, self._capture())][-self.settings.snapshots :]
        if not self.anticipating(step):
            self._attempts, self._returned = 0, set()

    def judge(self, step: int, *, loss: float, grad_norm: float) -> int | None:
        """None to go on; after a spike the step to go on from, with the state of that step restored. Call it before
        the update.

        A finite value does not make the run return twice: when the same step spikes again, its batch is the cause.
        A finite gradient norm does not make it return while routing is anticipatory, and does not count as an attempt:
        clipping bounds its update, and small, mixed batches have such norms in healthy runs. Raises Diverged when the
        loss, or a value that is not finite, spikes more often than `attempts` times without `hold` calm steps between.
        """
        spike = self.detector.check(step, loss=loss, grad_norm=grad_norm)
        if spike is None:
            return None
        finite = math.isfinite(spike.value)
        harmless = finite and spike.name == "grad_norm"
        if (finite and step in self._returned) or (harmless and self.anticipating(step)):
            if harmless:
                self.detector.remember(loss=loss, grad_norm=grad_norm)
            return None
        self._returned.add(step)
        self.spikes.append(spike)
        if not harmless:
            self._attempts += 1
        if self._attempts > self.settings.attempts:
            raise Diverged(f"{spike}; {self.settings.attempts} returns to a snapshot did not help")
        return self._return(step)

    def _return(self, step: int) -> int:
        """Restore the newest snapshot that lies far enough before `step`; returns its step."""
        trusted = [kept for kept in self._snapshots if kept[0] <= step - self.settings.margin]
        back, state = trusted[-1] if trusted else self._snapshots[0]
        self._snapshots = [kept for kept in self._snapshots if kept[0] <= back]
        self._restore(state)
        self.route_ahead(step + self.settings.hold)
        return back

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints, without snapshots: after a restart the checkpoint itself is the first snapshot."""
        own = {"until": self._until, "attempts": self._attempts, "returned": sorted(self._returned)}
        return {**own, "detector": self.detector.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._until, self._attempts = state["until"], state["attempts"]
        self._returned = set(state.get("returned", ()))
        self.detector.load_state_dict(state["detector"])
        self._snapshots = []
