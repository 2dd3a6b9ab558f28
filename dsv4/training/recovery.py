"""Recovery from spikes (report 4.4): after a spike the run goes back to a snapshot, routes ahead for a while
(`anticipate.py`), then returns to normal. Detector and duration are not published."""

import math
from collections.abc import Callable
from typing import Any

from dsv4.training.settings import RecoverySettings
from dsv4.training.spikes import Spike, SpikeDetector


class Diverged(RuntimeError):
    """A run that going back does not save."""


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
        settings: RecoverySettings,
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
