"""The choice of the requests of the next step and of the number of tokens of each: a pure function of plain data.

The engine carries out a decision and calls `decide` again, until the decision is a step to run.
"""

from dataclasses import dataclass

# one unit of priority counts as this many engine steps of waiting
PRIORITY_STEPS = 256


@dataclass(frozen=True, slots=True)
class RequestView:
    """The scheduler's view of one request."""

    number: int
    arrival: int  # the engine's number of steps when the request was queued
    priority: int
    known: int  # tokens of prompt and answer so far
    cached: int  # those of them that are in the cache
    stop: int  # the last position at which the next chunk may end
    drafts: int = 0  # proposed tokens that the same step checks
    pages: int = 0  # pages that it holds; while it waits: pages of its prefix that running requests hold

    @property
    def uncached(self) -> int:
        return self.known - self.cached

    @property
    def rank(self) -> tuple[int, int]:
        """The smallest rank is served first. It never changes, so the first request stays first until it ends: no
        request starves, and none is preempted for ever."""
        return self.arrival - self.priority * PRIORITY_STEPS, self.number


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """The requests and the free resources. free_pages includes the pages that only kept prefixes hold. prompt_budget:
    tokens of prompts in one step in which others decode; None = only `budget` limits them."""

    running: tuple[RequestView, ...]
    waiting: tuple[RequestView, ...]
    free_pages: int
    free_slots: int
    budget: int  # tokens of one step
    page_tokens: int
    prompt_budget: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the engine does next. At most one of the three fields is set; none is set when nothing can be done. parts:
    the step as pairs (request number, tokens)."""

    parts: tuple[tuple[int, int], ...] = ()
    admit: int | None = None
    preempt: int | None = None


def decide(state: SchedulerState) -> Decision:
    """The next decision.

    Decoding requests get their token in every step. Prompts share the rest of the budget equally, so neither an answer
    nor a short prompt waits for a long prompt. While others decode, `prompt_budget` limits prompts. When pages run out,
    the step checks no drafts; if that is not enough, the request that is last in rank is preempted.
    Waiting requests are admitted in rank order, when a slot is free and the free pages hold all tokens that the request
    and the running requests have so far. The length of their answers is unknown, so long answers may be preempted. A
    waiting request takes the slot of a running one only with a higher priority.
    """
    running = sorted(state.running, key=lambda request: request.rank)
    parts = _parts(running, state.budget, state.prompt_budget)
    missing = _pages(parts, state)
    if missing > 0:
        # drafts must not cost another request its place
        parts = [(request, count if request.uncached > 1 else 1) for request, count in parts]
        missing = _pages(parts, state)
    if missing > 0:
        if len(running) > 1:
            return Decision(preempt=running[-1].number)
        raise RuntimeError(f"a single request needs {missing} pages more than there are")
    if state.waiting:
        head = min(state.waiting, key=lambda request: request.rank)
        needed = _growth(head, head.uncached + 1, state.page_tokens)
        promised = sum(_growth(request, request.uncached + request.drafts, state.page_tokens) for request in running)
        if state.free_slots and needed + promised <= state.free_pages:
            return Decision(admit=head.number)
        if running and head.priority > running[-1].priority and head.rank < running[-1].rank:
            return Decision(preempt=running[-1].number)
    return Decision(parts=tuple((request.number, count) for request, count in parts))


def _parts(running: list[RequestView], budget: int, prompt_budget: int | None) -> list[tuple[RequestView, int]]:
    """The requests of a step and the number of tokens of each, in rank order."""
    decoding = [request for request in running if request.uncached == 1]
    prompts = [request for request in running if request.uncached > 1]
    parts = [(request, 1 + request.drafts) for request in decoding]
    left = max(len(prompts), budget - sum(count for _, count in parts))
    if decoding and prompt_budget is not None:
        left = min(left, prompt_budget)
    for i, request in enumerate(prompts):
        count = min(-(-left // (len(prompts) - i)), request.stop - request.cached)
        parts += [(request, count)] if count else []
        left -= count
    return sorted(parts, key=lambda part: part[0].rank)


def _pages(parts: list[tuple[RequestView, int]], state: SchedulerState) -> int:
    """How many pages a step needs beyond the free ones."""
    return sum(_growth(request, count, state.page_tokens) for request, count in parts) - state.free_pages


def _growth(request: RequestView, count: int, page_tokens: int) -> int:
    """The number of pages to allocate before `count` more tokens are written."""
    return max(0, -(-(request.cached + count) // page_tokens) - request.pages)
