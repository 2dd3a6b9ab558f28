"""Times of requests and what follows from them: percentiles, rates, goodput. All times are in seconds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

PERCENTILES = (50, 90, 95, 99)


@dataclass(slots=True)
class Timing:
    """One request.

    due: when it was to be sent; sent: when it was. arrivals: of the events with text. end: of the answer or its error.
    prompt, cached, generated: tokens as the server reports them; None = it does not. wanted: tokens that were asked
    for. error: its kind; "" = there was none. unfinished: the run was over before the answer was.
    """

    due: float
    sent: float
    arrivals: list[float] = field(default_factory=list)
    end: float = 0.0
    prompt: int | None = None
    cached: int | None = None
    generated: int | None = None
    wanted: int = 0
    error: str = ""
    unfinished: bool = False

    @property
    def ok(self) -> bool:
        """Whether the whole answer came."""
        return not (self.error or self.unfinished) and bool(self.arrivals)

    @property
    def tokens(self) -> int:
        """Of the answer: as reported, else one for each event."""
        return len(self.arrivals) if self.generated is None else self.generated

    @property
    def first(self) -> float:
        """From the time at which it was due, so that a client or server that is behind does not look fast."""
        return self.arrivals[0] - self.due

    @property
    def whole(self) -> float:
        """From the time at which it was due to the last event."""
        return self.end - self.due

    @property
    def per_token(self) -> float | None:
        """Mean time of a token after the first; None for an answer of one."""
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def gaps(self) -> list[float]:
        """Between events; a server that sends several tokens in an event has fewer and longer ones."""
        return [b - a for a, b in pairwise(self.arrivals)]


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What a good answer keeps to: seconds to the first token, of a token after it (mean), and of the whole."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"max_{name} must be more than 0 seconds, got {value:g}")

    def __bool__(self) -> bool:
        return any(value is not None for value in asdict(self).values())

    def kept(self, timing: Timing) -> bool:
        """Whether the answer came, within all limits."""
        if not timing.ok:
            return False
        found = ((self.ttft, timing.first), (self.tpot, timing.per_token or 0.0), (self.e2e, timing.whole))
        return all(limit is None or value <= limit for limit, value in found)


def percentile(values: Sequence[float], percent: float) -> float:
    """With linear interpolation between the two nearest of `values`, which are sorted and at least one."""
    place = (len(values) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Mean and percentiles by name; empty for no values."""
    known = sorted(values)
    if not known:
        return {}
    return {"mean": sum(known) / len(known), **{f"p{p}": percentile(known, p) for p in PERCENTILES}, "max": known[-1]}


@dataclass(frozen=True, slots=True)
class TimingSummary:
    """What a number of requests took.

    seconds: from the first request that was due to the last end. errors: how many of each kind. late: seconds by which
    the client sent the latest request too late. prompt, cached, generated: tokens; cached is None if no answer tells
    it. short: answers with fewer tokens than asked for. ttft, itl, tpot, e2e: as `spread` gives them. good: answers
    within the limits; None without limits.
    """

    requests: int
    finished: int
    unfinished: int
    errors: dict[str, int]
    seconds: float
    late: float
    prompt: int
    cached: int | None
    generated: int
    short: int
    ttft: dict[str, float]
    itl: dict[str, float]
    tpot: dict[str, float]
    e2e: dict[str, float]
    good: int | None = None

    @property
    def output_rate(self) -> float:
        """Tokens of answers a second."""
        return self.generated / self.seconds if self.seconds else 0.0

    @property
    def total_rate(self) -> float:
        """Tokens of prompts and answers a second; cached ones count."""
        return (self.prompt + self.generated) / self.seconds if self.seconds else 0.0

    @property
    def request_rate(self) -> float:
        """Whole answers a second."""
        return self.finished / self.seconds if self.seconds else 0.0

    @property
    def goodput(self) -> float | None:
        """Answers within the limits a second; None without limits."""
        return None if self.good is None else (self.good / self.seconds if self.seconds else 0.0)

    @property
    def hit_rate(self) -> float | None:
        """Share of the tokens of prompts that the server had; None where it does not tell."""
        return None if self.cached is None or not self.prompt else self.cached / self.prompt

    def to_dict(self) -> dict[str, Any]:
        names = ("output_rate", "total_rate", "request_rate", "goodput", "hit_rate")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


def summarise(timings: Sequence[Timing], limits: ServiceLimits = ServiceLimits()) -> TimingSummary:
    """The summary of these requests. Tokens of answers that did not finish count too, as far as they came."""
    fine = [timing for timing in timings if timing.ok]
    errors: dict[str, int] = {}
    for timing in timings:
        if timing.error:
            errors[timing.error] = errors.get(timing.error, 0) + 1
    began = min((timing.due for timing in timings), default=0.0)
    cached = [timing.cached for timing in timings if timing.cached is not None]
    return TimingSummary(
        requests=len(timings),
        finished=len(fine),
        unfinished=sum(timing.unfinished for timing in timings),
        errors=errors,
        seconds=max((timing.end for timing in timings), default=0.0) - began,
        late=max((timing.sent - timing.due for timing in timings), default=0.0),
        prompt=sum(timing.prompt or 0 for timing in timings),
        cached=sum(cached) if cached else None,
        generated=sum(timing.tokens for timing in timings),
        short=sum(timing.tokens < timing.wanted for timing in fine),
        ttft=spread(timing.first for timing in fine),
        itl=spread(gap for timing in fine for gap in timing.gaps),
        tpot=spread(timing.per_token for timing in fine if timing.per_token is not None),
        e2e=spread(timing.whole for timing in fine),
        good=sum(limits.kept(timing) for timing in timings) if limits else None,
    )
