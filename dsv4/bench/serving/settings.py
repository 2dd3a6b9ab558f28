"""What a run of the benchmark sends, and the limits that keep it bounded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dsv4.workload.kinds import Workload, faster, poisson
from dsv4.workload.timing import ServiceLimits
from dsv4.workload.trace import Session

MOST_USERS = 1024
MOST_REQUESTS = 1_000_000


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """One level of load. rate: sessions that arrive a second (open loop). users: sessions at a time, each followed by
    the next (closed loop). With neither the trace's own times decide."""

    rate: float | None = None
    users: int | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate <= 10_000:
            raise ValueError(f"rate must be in (0, 10000] sessions a second, got {self.rate:g}")
        if self.users is not None and not 1 <= self.users <= MOST_USERS:
            raise ValueError(f"users must be in [1, {MOST_USERS}], got {self.users}")

    @property
    def name(self) -> str:
        """For tables."""
        if self.users is not None:
            return f"{self.users} user{'s' if self.users > 1 else ''}"
        return "as traced" if self.rate is None else f"{self.rate:g}/s"


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What is sent, and how long.

    loads: levels of load, one after another. workload: what is made; trace: sessions of a file in its place. requests:
    the most of one level of load. seconds: after which no request is sent any more; patience: seconds that running
    answers get after that. most: requests at a time in an open loop. speed: by which a trace's times are divided.
    extra: more fields of each request. salt: in all prompts; two runs with one salt send the same prompts.
    """

    loads: tuple[LoadLevel, ...]
    workload: Workload = Workload()  # noqa: RUF009 (frozen)
    trace: tuple[Session, ...] = ()
    requests: int = 64
    seconds: float = 60.0
    patience: float = 60.0
    most: int = 256
    speed: float = 1.0
    limits: ServiceLimits = ServiceLimits()  # noqa: RUF009 (frozen)
    extra: Mapping[str, Any] = field(default_factory=dict)
    salt: str = "0"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.loads:
            raise ValueError("rate or users must name at least one level of load")
        for name, least, largest in (("requests", 1, MOST_REQUESTS), ("most", 1, MOST_USERS)):
            if not least <= getattr(self, name) <= largest:
                raise ValueError(f"{name} must be in [{least}, {largest}], got {getattr(self, name)}")
        for name in ("seconds", "patience"):
            if not 0 < getattr(self, name) <= 86_400:
                raise ValueError(f"{name} must be in (0, 86400], got {getattr(self, name):g}")
        if not 0 < self.speed < math.inf:
            raise ValueError(f"speed must be more than 0, got {self.speed:g}")

    def sessions(self, place: int) -> list[Session]:
        """The sessions of the level of load at `place`: of a made workload new ones, so that no level finds the
        prefixes of another, and of at most `requests` requests together."""
        load, salt = self.loads[place], f"{self.salt}-{place}"
        if self.trace:
            sessions = list(self.trace)
        else:
            count = -(-self.requests // self.workload.session_length)
            sessions = self.workload.sessions(count, salt, self.seed)
        sessions = faster(_first(sessions, self.requests), self.speed)
        if load.rate is not None:
            return poisson(sessions, load.rate, self.seed + place)
        return sessions if load.users is None else [_without_times(session) for session in sessions]


def _first(sessions: Sequence[Session], most: int) -> list[Session]:
    """The first sessions, of `most` requests together."""
    kept: list[Session] = []
    for session in sessions:
        if most <= 0:
            break
        kept.append(session[:most])
        most -= len(session)
    return kept


def _without_times(session: Session) -> Session:
    return tuple(replace(request, at=None) for request in session)
