"""How many drafts a step checks, and whether drafting pays: the choice by confidence and by measured times (DSpark,
algorithm 1).

Nothing here changes a token: it only decides which rows are computed together. All numbers are plain Python.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dsv4.engine.request import Request

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


def worth_checking(
    survivals: Sequence[Sequence[float]], times: StepTimes, draft_seconds: float = 0.0, most: int | None = None
) -> tuple[list[int], float]:
    """For each request, how many of its drafts to check, and the expected tokens per second: drafts are taken in the
    order of their survival as long as that rate grows, at most `most` of them. All, as long as no step was measured.
    survivals: as in `Pace.lengths`. draft_seconds: what making the drafts takes in a step."""
    chosen = [0] * len(survivals)
    pairs = sorted(((p, -at, i) for i, request in enumerate(survivals) for at, p in enumerate(request)), reverse=True)
    rows = tokens = float(len(survivals))
    best = tokens / (draft_seconds + times.of(rows)) if times.known else 0.0
    for survival, _, i in pairs[:most]:
        if times.known:
            rate = (tokens + survival) / (draft_seconds + times.of(rows + 1))
            if not rate > best:  # also where a confidence is NaN
                break
            best = rate
        rows, tokens, chosen[i] = rows + 1, tokens + survival, chosen[i] + 1
    return chosen, best


@dataclass(slots=True)
class HeadRecord:
    """How many drafts of the prediction block or draft head were right, on average of the last ones."""

    mean: float = 1.0  # as long as nothing was drafted
    _open: list[tuple[Request, int]] = field(default_factory=list)

    def drafted(self, requests: Sequence[Request]) -> None:
        """The head made the drafts of these requests."""
        self._open = [(request, len(request.tokens)) for request in requests]

    def update(self, checked: Sequence[Request]) -> float:
        """The mean after the step that checked drafts of the requests `checked`. Of the others, which were preempted or
        whose drafts had no room, nothing is known."""
        for request, known in self._open:
            if request in checked:
                self.mean += (1 - _DECAY) * (len(request.tokens) - known - 1 - self.mean)
        self._open = []
        return self.mean


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
        chosen, best = worth_checking(survivals, self.times, self.draft_seconds)
        if self.times.known:
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
