"""The state of one request: its tokens, its place in the cache, its sampler."""

from bisect import bisect_right
from dataclasses import dataclass, field
from enum import StrEnum

from dsv4.cache import Place
from dsv4.engine.prompt_lookup import PromptLookup
from dsv4.engine.sampler import Sampler
from dsv4.engine.scheduler import RequestView
from dsv4.engine.trace import RequestTrace
from dsv4.generation import RequestOptions, SamplingParams


class RequestStatus(StrEnum):
    WAITING = "waiting"  # no place in the cache
    RUNNING = "running"
    ENDED = "ended"


@dataclass(eq=False, slots=True)
class Request:
    """`tokens` is the prompt and all tokens sampled since; the cache holds the first `cached` of them.

    points: ascending positions at which a chunk of the prompt ends, because the prefix is kept there. drafts: the
    tokens that look-up, the prediction block or the draft head proposes after `tokens`. lookup: finds earlier
    occurrences of the last tokens; None before the first look-up. predicted: the number of positions that the
    prediction block has processed.
    """

    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    options: RequestOptions
    sampler: Sampler
    points: list[int]
    number: int = -1  # both are set when the request is queued
    arrival: int = -1  # the engine's number of steps at that time
    status: RequestStatus = RequestStatus.WAITING
    cached: int = 0
    reused: int = 0
    place: Place | None = None
    drafts: list[int] = field(default_factory=list)
    lookup: PromptLookup | None = None
    predicted: int = 0
    predicted_from: int = 0  # the first position in the window of the prediction block
    keep: bool = True  # False: its cache does not match its tokens and the weights, so it may not be reused
    failed: str | None = None  # the message for its client after a failed step
    suspect: bool = False  # it was in a failed step, so from now on it is computed alone
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
    def decodes(self) -> bool:
        """Whether drafts may follow: all is in the cache but the last token, which was sampled. At the end of a prompt
        none may, because its snapshot serves only as many tokens further back as a step may take back."""
        return self.uncached == 1 and self.generated > 0

    @property
    def room(self) -> int:
        """How many drafts the next step may check: none for the last token of an answer, and none for a traced request,
        because a draft that is not accepted has no trace."""
        return 0 if self.trace is not None else max(0, self.params.max_tokens - self.generated - 1)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    def view(self, shared_pages: int = 0) -> RequestView:
        """The scheduler's view of this request. shared_pages: of its prefix, while it waits."""
        at = bisect_right(self.points, self.cached)
        stop = self.points[at] if at < len(self.points) else len(self.tokens)
        return RequestView(
            number=self.number,
            arrival=self.arrival,
            priority=self.options.priority,
            known=len(self.tokens),
            cached=self.cached,
            stop=min(stop, len(self.tokens)),
            drafts=len(self.drafts),
            pages=len(self.place.pages) if self.place else shared_pages,
        )
