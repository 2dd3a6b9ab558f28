"""Noticing that a run goes wrong: a detector of NaN and of sudden jumps (report 4.4). The report does not publish its
own."""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

_MAD_TO_STD = 1.4826  # of a normal distribution


@dataclass(frozen=True, slots=True)
class Spike:
    """A value out of the ordinary. limit: what was still ordinary; NaN or infinity is never."""

    step: int
    name: str
    value: float
    limit: float

    def __str__(self) -> str:
        return f"step {self.step}: {self.name} {self.value:.4g} is above {self.limit:.4g}"


class SpikeDetector:
    """Compares each step with the median of the last `window` ordinary ones.

    Above median + threshold * deviation is a spike; the deviation is 1.4826 times the median distance from the median,
    at least `floor` times the median, so that a very calm run does not cry wolf. Drops are no spikes. Values that spike
    do not enter the window. Before `minimum` values only NaN and infinity count.
    """

    def __init__(self, window: int = 128, minimum: int = 16, threshold: float = 8.0, floor: float = 0.05) -> None:
        if not 1 < minimum <= window:
            raise ValueError(f"minimum must be in [2, window {window}], got {minimum}")
        if threshold <= 0 or floor < 0:
            raise ValueError(f"threshold must be positive and floor at least 0, got {threshold} and {floor}")
        self.window, self.minimum, self.threshold, self.floor = window, minimum, threshold, floor
        self._seen: dict[str, deque[float]] = {}

    def limit(self, name: str) -> float:
        """The largest value of `name` that is ordinary now; infinity while too little was seen."""
        seen = self._seen.get(name, ())
        if len(seen) < self.minimum:
            return math.inf
        middle = median(seen)
        deviation = _MAD_TO_STD * median(abs(value - middle) for value in seen)
        return middle + self.threshold * max(deviation, self.floor * abs(middle))

    def check(self, step: int, **values: float) -> Spike | None:
        """The first of the named values that spikes; otherwise all of them are remembered.

        detector.check(step, loss=2.31, grad_norm=0.8)
        """
        for name, value in values.items():
            limit = self.limit(name)
            if not math.isfinite(value) or value > limit:
                return Spike(step, name, value, limit)
        for name, value in values.items():
            self._seen.setdefault(name, deque(maxlen=self.window)).append(value)
        return None

    def reset(self) -> None:
        """Forget what was ordinary: a new stage has other losses."""
        self._seen = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: list(seen) for name, seen in self._seen.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen = {name: deque(values, maxlen=self.window) for name, values in state.items()}
