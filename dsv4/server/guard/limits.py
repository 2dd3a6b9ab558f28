"""Limits of each key: requests and tokens per minute, tokens per day, requests at once.

The counts are in memory, over sliding minutes; a day begins at midnight UTC. Every POST request counts, also one that
only counts tokens or is refused later; a request for `n` answers counts `n` times. The tokens of a prompt count when it
is admitted, those of an answer when it ends.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Self

from dsv4.server.wire.errors import ApiError, busy, invalid

MINUTE, DAY = 60.0, 86_400.0


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of one key; None = no limit."""

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
    """What one key has used. recent: (when, tokens) of the last minute, `tokens` of them together; starts: when its
    requests began; today: tokens of the day number `day`."""

    recent: deque[tuple[float, int]] = field(default_factory=deque)
    starts: deque[float] = field(default_factory=deque)
    tokens: int = 0
    running: int = 0
    day: int = 0
    today: int = 0

    def forget(self, now: float, day: int) -> None:
        """Drop entries older than a minute or of another day. Entries later than `now`, because the clock was set back,
        are moved to `now`."""
        if (self.recent and self.recent[-1][0] > now) or (self.starts and self.starts[-1] > now):
            self.recent = deque((min(when, now), tokens) for when, tokens in self.recent)
            self.starts = deque(min(when, now) for when in self.starts)
        while self.recent and self.recent[0][0] <= now - MINUTE:
            self.tokens -= self.recent.popleft()[1]
        while self.starts and self.starts[0] <= now - MINUTE:
            self.starts.popleft()
        if self.day != day:
            self.day, self.today = day, 0

    def spend(self, now: float, tokens: int) -> None:
        self.recent.append((now, tokens))
        self.tokens += tokens
        self.today += tokens


class UsageLimits:
    """The usage of each key, and its limits. clock: monotonic seconds, for minutes; wall: seconds since 1970, for days.

    `enter` begins and `leave` ends every POST request; an answer also spends tokens.

    >>> UsageLimits({"ann": KeyLimits(concurrent=1)}).enter("ann")
    """

    def __init__(
        self,
        limits: Mapping[str, KeyLimits],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._limits, self._clock, self._wall = limits, clock, wall
        self._accounts: dict[str, _Account] = {}

    def enter(self, key: str) -> None:
        """Count a request before its body is read. Raises ApiError 429 with the limit and the time to wait."""
        limits = self._limits.get(key)
        if limits is None:
            return
        self._count(key, limits, 1)

    def enter_more(self, key: str, more: int, field: str = "n") -> None:
        """Count `more` answers to a request that was let in: each counts as a request. `leave` ends them. field: of
        the request, that asks for them. Raises ApiError: 429 as `enter`, and 400 for more answers than the key may
        ever have."""
        limits = self._limits.get(key)
        if limits is None:
            return
        most = min(limit for limit in (limits.requests, limits.concurrent, math.inf) if limit is not None)
        if 1 + more > most:
            raise invalid(
                field,
                f"must be at most {most}, the requests that this key may use at once or in a minute, got {1 + more}",
            )
        self._count(key, limits, more)

    def leave(self, key: str, count: int = 1) -> None:
        """`count` requests that were let in are over."""
        if key in self._accounts:
            self._accounts[key].running -= count

    def admit(self, key: str, prompt: int) -> None:
        """Spend the tokens of a prompt. Raises ApiError 429 with the limit and the time to wait."""
        limits = self._limits.get(key)
        if limits is None:
            return
        account, now = self._account(key)
        # a prompt larger than the limit is admitted in an empty minute: otherwise it could never be answered
        if limits.tokens is not None and account.tokens and account.tokens + prompt > limits.tokens:
            raise _over("tokens per minute", limits.tokens, account.recent[0][0] + MINUTE - now)
        if limits.day is not None and account.today + prompt > limits.day:
            raise _over("tokens per day", limits.day, DAY - self._wall() % DAY)
        account.spend(now, prompt)

    def spend(self, key: str, completion: int) -> None:
        """Spend the `completion` tokens of an admitted answer that is over."""
        if key in self._accounts:
            account, now = self._account(key)
            account.spend(now, completion)

    def _count(self, key: str, limits: KeyLimits, count: int) -> None:
        account, now = self._account(key)
        if limits.concurrent is not None and account.running + count > limits.concurrent:
            raise _over("requests at once", limits.concurrent, 2.0)
        if limits.requests is not None and (over := len(account.starts) + count - limits.requests) > 0:
            raise _over("requests per minute", limits.requests, account.starts[over - 1] + MINUTE - now)
        account.starts.extend([now] * count)
        account.running += count

    def _account(self, key: str) -> tuple[_Account, float]:
        """The recent usage of `key`, and the time."""
        account, now = self._accounts.setdefault(key, _Account()), self._clock()
        account.forget(now, int(self._wall() // DAY))
        return account, now


def _over(what: str, limit: int, seconds: float) -> ApiError:
    wait = max(1, math.ceil(seconds))
    return busy(f"this key may use {limit} {what}; try again in {wait} seconds", wait)
