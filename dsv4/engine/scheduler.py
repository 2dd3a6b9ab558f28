"""Which requests run in the next step and how many tokens of each: a pure function of plain data.

The engine carries a decision out and calls `decide` again, until the decision is a step to run.
"""

from dataclasses import dataclass

# one step of priority is worth this many engine steps of waiting
PRIORITY_STEPS = 256


@dataclass(frozen=True, slots=True)
class Job:
    """The scheduler's view of one request."""

    number: int
    arrival: int  # engine step at which it came
    priority: int
    known: int  # tokens of prompt and answer so far
    cached: int  # of these, in the cache
    stop: int  # where the next chunk must end at the latest
    drafts: int = 0  # proposed tokens to check in the same step
    pages: int = 0  # held; while waiting: pages of its prefix that others hold anyway

    @property
    def uncached(self) -> int:
        return self.known - self.cached

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller goes first. It never changes, so the first request stays first until it ends: no request starves, and
        none is preempted for ever."""
        return self.arrival - self.priority * PRIORITY_STEPS, self.number


@dataclass(frozen=True, slots=True)
class State:
    """free_pages includes the pages that are freed by dropping kept prefixes."""

    running: tuple[Job, ...]
    waiting: tuple[Job, ...]
    free_pages: int
    free_slots: int
    budget: int  # tokens of one step
    page_tokens: int


@dataclass(frozen=True, slots=True)
class Decision:
    """At most one of the three is not empty; all three are empty when nothing can be done. parts: (request number,
    tokens)."""

    parts: tuple[tuple[int, int], ...] = ()
    admit: int | None = None
    preempt: int | None = None


def decide(state: State) -> Decision:
    """The next thing to do.

    Decoding requests get their token in every step. Prompts share the rest of the budget equally, so neither an answer
    nor a short prompt waits for a long prompt. When pages run out, the request that is last in rank is preempted.
    Waiting requests are admitted in rank order, when a slot is free and the free pages hold all tokens that the request
    and the running requests have so far. The length of their answers is unknown, so long answers may be preempted. A
    waiting request takes the slot of a running one only with a higher priority.
    """
    running = sorted(state.running, key=lambda job: job.rank)
    parts = _parts(running, state.budget)
    missing = sum(_growth(job, count, state.page_tokens) for job, count in parts) - state.free_pages
    if missing > 0:
        if len(running) > 1:
            return Decision(preempt=running[-1].number)
        raise RuntimeError(f"a single request needs {missing} pages more than there are")
    if state.waiting:
        head = min(state.waiting, key=lambda job: job.rank)
        needed = _growth(head, head.uncached + 1, state.page_tokens)
        promised = sum(_growth(job, job.uncached + job.drafts, state.page_tokens) for job in running)
        if state.free_slots and needed + promised <= state.free_pages:
            return Decision(admit=head.number)
        if running and head.priority > running[-1].priority and head.rank < running[-1].rank:
            return Decision(preempt=running[-1].number)
    return Decision(parts=tuple((job.number, count) for job, count in parts))


def _parts(running: list[Job], budget: int) -> list[tuple[Job, int]]:
    """Tokens of each job, in rank order."""
    decoding = [job for job in running if job.uncached == 1]
    prompts = [job for job in running if job.uncached > 1]
    parts = [(job, 1 + job.drafts) for job in decoding]
    left = max(len(prompts), budget - sum(count for _, count in parts))
    for i, job in enumerate(prompts):
        share = -(-left // (len(prompts) - i))
        count = min(share, job.stop - job.cached)
        parts.append((job, count))
        left -= count
    return sorted(parts, key=lambda part: part[0].rank)


def _growth(job: Job, count: int, page_tokens: int) -> int:
    """Pages to take before `count` more tokens are written."""
    return max(0, -(-(job.cached + count) // page_tokens) - job.pages)
