"""How many prompt tokens a step computes beside decoding requests, so that a long prompt does not hold up their tokens.

Nothing here changes a token: it only decides which rows are computed together. All numbers are plain Python.
"""

from collections import deque
from statistics import median_high, median_low

LEAST_SECONDS = 0.005  # a step may always take so long: 200 tokens a second are faster than anybody reads
_MARGIN = 0.8  # of the allowed time is planned for: steps of one size vary
_FIRST = 16  # prompt tokens of a step before their time is known
_MEASURES = 9  # the last ones count, by their median: a step that something else interrupted changes nothing
_AGAIN = 64  # after so many steps with prompts, one without them shows how long that takes at present


class PrefillPace:
    """Limits prompt tokens by the measured seconds of steps.

    slowdown: a step with prompts takes at most so many times as long as a step of the same decoding requests alone
    (above 1). Steps with prompts alone are not limited.
    """

    def __init__(self, slowdown: float) -> None:
        if not slowdown > 1:
            raise ValueError(f"slowdown must be more than 1, got {slowdown}")
        self._slowdown = slowdown
        self._alone: dict[int, deque[float]] = {}  # seconds of steps without prompts, by rows
        self._each: deque[float] = deque(maxlen=_MEASURES)  # seconds that a prompt token adds to a step
        self._mixed = 0  # steps with prompts since the last one without

    def stepped(self, rows: int, prompt: int, seconds: float) -> None:
        """A step of `rows` rows of decoding requests and `prompt` tokens of prompts took so long."""
        if not rows:
            return
        if not prompt:
            self._alone.setdefault(rows, deque(maxlen=_MEASURES)).append(seconds)
            self._mixed = 0
            return
        self._mixed += 1
        if self._alone:
            self._each.append(max(0.0, seconds - self._expected(rows)) / prompt)

    def tokens(self, rows: int) -> int | None:
        """The most prompt tokens for a step with so many decoding rows; None = no limit. 0 now and then, so that the
        time of a step without prompts is known."""
        if not rows:
            return None
        if not self._alone or self._mixed >= _AGAIN:
            return 0
        if not self._each:
            return _FIRST
        alone, each = self._expected(rows), median_high(self._each)
        spare = max((self._slowdown - 1) * alone, LEAST_SECONDS - alone)
        return max(1, int(_MARGIN * spare / each)) if each > 0 else None

    def _expected(self, rows: int) -> float:
        """Seconds of a step of so many rows without prompts: of the nearest number that was measured, the smaller one
        where there are two, so that rather too little time is planned for."""
        nearest = min(self._alone, key=lambda known: (abs(known - rows), known))
        return median_low(self._alone[nearest])
