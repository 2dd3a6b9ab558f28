"""Tokens by second, for the curve of the engine page. Adding is a comparison and a sum; nothing is timed."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KEPT_SECONDS = 900


@dataclass(slots=True)
class TokenRates:
    """Prompt tokens that were computed and tokens that were generated, in each of the last `kept` seconds."""

    kept: int = KEPT_SECONDS
    clock: Callable[[], float] = time.time
    _seconds: "deque[list[int]]" = field(default_factory=deque)  # [second, prompt, generated], without empty seconds

    def add(self, *, prompt: int = 0, generated: int = 0) -> None:
        """Count tokens of this second."""
        now, seconds = int(self.clock()), self._seconds
        # a clock that was set back must not split a second in two
        if seconds and now <= seconds[-1][0]:
            seconds[-1][1] += prompt
            seconds[-1][2] += generated
            return
        seconds.append([now, prompt, generated])
        while seconds[0][0] <= now - self.kept:
            seconds.popleft()

    def since(self, second: int = 0) -> dict[str, Any]:
        """The seconds after `second`, the oldest first; `now` is not over yet. Seconds without tokens are left out."""
        now = int(self.clock())
        return {"now": now, "kept": self.kept, "seconds": [list(row) for row in self._seconds if row[0] > second]}
