"""How many drafts a step checks, and whether drafting pays: the choice by confidence and by measured times (DSpark,
algorithm 1).

Nothing here changes a token: it only decides which rows are computed together. All numbers are plain Python.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

_DECAY = 0.97  # of the weight of an older measurement
_ROW = 0.3  # a further row costs this share of a step of one row, as long as nothing is measured
_ROW_WEIGHT = 4.0  # of that guess, in squared rows
_OUTLIER = 4.0  # a step that took longer than this many times the mean was interrupted by something else
_PAUSE, _LONGEST_PAUSE = 16, 512  # steps without drafts after drafting did not pay


class Pace(Protocol):
    """Decides about drafts; `DraftPace` by measured times."""

    def wanted(self) -> bool:
        """Whether the next step should check drafts."""
        ...

    def lengths(self, survivals: Sequence[Sequence[float]]) -> list[int]:
        """For each request, how many of its drafts the next step checks. survivals: the probability that a draft and
        all before it are accepted."""
        ...

    def stepped(self, rows: int, seconds: float) -> None:
        """A decoding step of so many rows took so long."""
        ...

    def drafted(self, seconds: float) -> None:
        """Drafting for one step took so long."""
        ...


@dataclass(slots=True)
class StepTimes:
    """Seconds of a decoding step as a line over its rows, fitted to the last steps."""

    _weight: float = 0.0
    _rows: float = 0.0
    _seconds: float = 0.0
    _square: float = 0.0
    _product: float = 0.0

    @property
    def known(self) -> bool:
        return self._weight > 0

    def add(self, rows: int, seconds: float) -> None:
        if self.known:
            seconds = min(seconds, _OUTLIER * self.of(rows))
        self._weight = _DECAY * self._weight + 1
        for name, value in (("_rows", rows), ("_seconds", seconds), ("_square", rows**2), ("_product", rows * seconds)):
            setattr(self, name, _DECAY * getattr(self, name) + value)

    def of(self, rows: float) -> float:
        """Expected seconds of a step of so many rows; above 0. Needs a step."""
        mean_rows, mean = self._rows / self._weight, self._seconds / self._weight
        guess = _ROW * mean / (1 + _ROW * (mean_rows - 1))
        spread = self._square - self._weight * mean_rows**2
        together = self._product - self._weight * mean_rows * mean
        slope = max(0.0, (together + _ROW_WEIGHT * guess) / (spread + _ROW_WEIGHT))
        return max(mean + slope * (rows - mean_rows), 0.1 * mean)


@dataclass(slots=True)
class DraftPace:
    """Takes drafts in order of their survival while the expected tokens per second grow. When the best choice is slower
    than steps without drafts, drafting pauses for some steps, and for longer each time."""

    times: StepTimes = field(default_factory=StepTimes)
    draft_seconds: float = 0.0
    _left: int = 0  # steps of the pause
    _pause: int = _PAUSE

    def wanted(self) -> bool:
        if self._left:
            self._left -= 1
            return False
        return True

    def lengths(self, survivals: Sequence[Sequence[float]]) -> list[int]:
        chosen = [0] * len(survivals)
        pairs = [(p, -at, i) for i, request in enumerate(survivals) for at, p in enumerate(request)]
        if not self.times.known:
            return [len(request) for request in survivals]
        rows = tokens = float(len(survivals))
        best = tokens / (self.draft_seconds + self.times.of(rows))
        for survival, _, i in sorted(pairs, reverse=True):
            rate = (tokens + survival) / (self.draft_seconds + self.times.of(rows + 1))
            if not rate > best:  # also where a confidence is NaN
                break
            rows, tokens, best, chosen[i] = rows + 1, tokens + survival, rate, chosen[i] + 1
        self._judge(best, len(survivals))
        return chosen

    def _judge(self, rate: float, requests: int) -> None:
        if rate >= requests / self.times.of(requests):
            self._pause = max(_PAUSE, self._pause // 2)
        else:
            self._left, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)

    def stepped(self, rows: int, seconds: float) -> None:
        self.times.add(rows, seconds)

    def drafted(self, seconds: float) -> None:
        known = self.draft_seconds
        self.draft_seconds = seconds if not known else known + (1 - _DECAY) * (min(seconds, _OUTLIER * known) - known)
