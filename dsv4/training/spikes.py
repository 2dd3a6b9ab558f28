"""A detector of loss spikes: NaN, infinity and sudden jumps (report 4.4, which does not publish its own detector)."""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

_MAD_TO_STD = 1.4826  # of a normal distribution


@dataclass(frozen=True, slots=True)
class Spike:
    """A value above `limit`, the largest that was ordinary at that step, or NaN or infinity."""

    step: int
    name: str
    value: float
    limit: float

    def __str__(self) -> str:
        return f"step {self.step}: {self.name} {self.value:.4g} is above {self.limit:.4g}"


class SpikeDetector:
    """Compares each step with the last `window` ordinary ones.

    A value above median + threshold * deviation is a spike; the deviation is 1.4826 times the median distance from the
    median, at least `floor` times the median, so that a very calm run has a limit too. A drop is no spike. A value that
    spikes does not enter the window. Before `minimum` values only NaN and infinity are spikes.

    heavy_tailed: names of values that are far above their median in healthy runs too, such as gradient norms of small,
    mixed batches. They are also ordinary up to twice the largest value in the window.
    """

    def __init__(
        self,
        window: int = 128,
        minimum: int = 16,
        threshold: float = 8.0,
        floor: float = 0.05,
        heavy_tailed: tuple[str, ...] = ("grad_norm",),
    ) -> None:
        if not 1 < minimum <= window:
            raise ValueError(f"minimum must be in [2, window {window}], got {minimum}")
        if threshold <= 0 or floor < 0:
            raise ValueError(f"threshold must be positive and floor at least 0, got {threshold} and {floor}")
        self.window, self.minimum, self.threshold, self.floor = window, minimum, threshold, floor
        self.heavy_tailed = heavy_tailed
        self._seen: dict[str, deque[float]] = {}

    def limit(self, name: str) -> float:
        """The largest value of `name` that is ordinary now; infinity while too little was seen."""
        seen = self._seen.get(name, ())
        if len(seen) < self.minimum:
            return math.inf
        middle = median(seen)
        deviation = _MAD_TO_STD * median(abs(value - middle) for value in seen)
        limit = middle + self.threshold * max(deviation, self.floor * abs(middle))
        return max(limit, 2 * max(seen)) if name in self.heavy_tailed else limit

    def check(self, step: int, **values: float) -> Spike | None:
        """The first of the named values that spikes, NaN and infinity before others; without one, all values are
        remembered.

        detector.check(step, loss=2.31, grad_norm=0.8)
        """
        limits = {name: self.limit(name) for name in values}
        spiking = [name for name, value in values.items() if not math.isfinite(value) or value > limits[name]]
        if spiking:
            name = min(spiking, key=lambda name: math.isfinite(values[name]))
            return Spike(step, name, values[name], limits[name])
        self.remember(**values)
        return None

    def remember(self, **values: float) -> None:
        """Add values to the window without a check: the caller has decided that they are ordinary."""
        for name, value in values.items():
            self._seen.setdefault(name, deque(maxlen=self.window)).append(value)

    def reset(self) -> None:
        """Forget what was ordinary: a new stage has other losses."""
        self._seen = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: list(seen) for name, seen in self._seen.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen = {name: deque(values, maxlen=self.window) for name, values in state.items()}
