"""How much each key may use: requests and tokens per minute, tokens per day, answers at once.

Counted in memory over sliding minutes; a new day begins at midnight UTC. A prompt counts when its request is admitted,
the answer when it is over.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Self

from dsv4.server.errors import ApiError, busy

MINUTE, DAY = 60.0, 86_400.0


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of one key; None = none."""

    requests: int | None = None
    tokens: int | None = None
    day: int | None = None
    concurrent: int | None = None

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """From words such as `requests=60`. Raises ValueError naming the word."""
        names = [item.name for item in fields(cls)]
        found: dict[str, int] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or name not in names:
                raise ValueError(f"expected a limit as {'=N, '.join(names)}=N, got {word!r}")
            if not value.isdecimal() or int(value) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
            found[name] = int(value)
        return cls(**found)


@dataclass(slots=True)
class _Account:
    """What one key has used. recent: (when, tokens) of the last minute; starts: when its requests began."""

    recent: deque[tuple[float, int]] = field(default_factory=deque)
    starts: deque[float] = field(default_factory=deque)
    running: int = 0
    day: int = 0
    today: int = 0

    def forget(self, now: float) -> None:
        """Drop what is older than a minute, or of another day."""
        while self.recent and self.recent[0][0] <= now - MINUTE:
            self.recent.popleft()
        while self.starts and self.starts[0] <= now - MINUTE:
            self.starts.popleft()
        if self.day != int(now // DAY):
            self.day, self.today = int(now // DAY), 0


class Limits:
    """Admits requests by key name. clock: seconds since 1970, for tests.

    >>> Limits({"ann": KeyLimits(concurrent=1)}).admit("ann", 10)
    """

    def __init__(self, limits: Mapping[str, KeyLimits], clock: Callable[[], float] = time.time) -> None:
        self._limits, self._clock = limits, clock
        self._accounts: dict[str, _Account] = {}

    def admit(self, key: str, prompt: int) -> None:
        """Count a request with a prompt of so many tokens. Raises ApiError 429 saying which limit and how long."""
        limits = self._limits.get(key)
        if limits is None:
            return
        now = self._clock()
        account = self._accounts.setdefault(key, _Account())
        account.forget(now)
        if limits.concurrent is not None and account.running >= limits.concurrent:
            raise _over("answers at once", limits.concurrent, 2.0)
        if limits.requests is not None and len(account.starts) >= limits.requests:
            raise _over("requests per minute", limits.requests, account.starts[0] + MINUTE - now)
        used = sum(tokens for _, tokens in account.recent)
        # a prompt larger than the limit is let through when nothing else was: it could never be answered otherwise
        if limits.tokens is not None and used and used + prompt > limits.tokens:
            raise _over("tokens per minute", limits.tokens, account.recent[0][0] + MINUTE - now)
        if limits.day is not None and account.today + prompt > limits.day:
            raise _over("tokens per day", limits.day, DAY - now % DAY)
        account.starts.append(now)
        account.running += 1
        self._spend(account, now, prompt)

    def release(self, key: str, completion: int) -> None:
        """An admitted request is over and has written so many tokens."""
        account = self._accounts.get(key)
        if account is None:
            return
        now = self._clock()
        account.running -= 1
        account.forget(now)
        self._spend(account, now, completion)

    def _spend(self, account: _Account, now: float, tokens: int) -> None:
        account.recent.append((now, tokens))
        account.today += tokens


def _over(what: str, limit: int, seconds: float) -> ApiError:
    wait = max(1, math.ceil(seconds))
    return busy(f"this key may use {limit} {what}; try again in {wait} seconds", wait)
