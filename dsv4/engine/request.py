"""One request while it runs: its tokens, its place in the cache, its sampler."""

from bisect import bisect_right
from dataclasses import dataclass, field
from enum import StrEnum

from dsv4.cache import Place
from dsv4.engine.sampler import Sampler
from dsv4.engine.scheduler import Job
from dsv4.engine.trace import RequestTrace
from dsv4.generation import RequestOptions, SamplingParams


class State(StrEnum):
    WAITING = "waiting"  # no place in the cache
    RUNNING = "running"
    ENDED = "ended"


@dataclass(eq=False, slots=True)
class Request:
    """`tokens` is the prompt and everything sampled since; the first `cached` of them are in the cache.

    points: positions where a prompt chunk ends because the prefix is kept there, ascending. drafts: tokens the
    prediction block proposes to follow `tokens`. predicted: positions the prediction block has seen.
    """

    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    options: RequestOptions
    sampler: Sampler
    points: list[int]
    number: int = -1  # both are given when it is queued
    arrival: int = -1  # the engine's step count then
    state: State = State.WAITING
    cached: int = 0
    reused: int = 0
    place: Place | None = None
    drafts: list[int] = field(default_factory=list)
    predicted: int = 0
    predicted_from: int = 0  # the first position its window holds
    keep: bool = True  # False: its cache is not what these tokens and weights give, nobody may reuse it
    failed: str | None = None  # a step with it raised: what its client is told
    suspect: bool = False  # was in a step that raised: goes through the model alone
    trace: RequestTrace | None = None  # where the caller wants one
    started: float | None = None  # clock at admission
    expires: float | None = None

    @property
    def running_place(self) -> Place:
        """The place of a running request. Raises RuntimeError for one that has none."""
        if self.place is None:
            raise RuntimeError("the request has no place in the cache")
        return self.place

    @property
    def uncached(self) -> int:
        return len(self.tokens) - self.cached

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    def job(self, shared_pages: int = 0) -> Job:
        """What the scheduler needs to know."""
        at = bisect_right(self.points, self.cached)
        stop = self.points[at] if at < len(self.points) else len(self.tokens)
        return Job(
            number=self.number,
            arrival=self.arrival,
            priority=self.options.priority,
            known=len(self.tokens),
            cached=self.cached,
            stop=min(stop, len(self.tokens)),
            drafts=len(self.drafts),
            pages=len(self.place.pages) if self.place else shared_pages,
        )
