"""Which requests run in the next step and how many tokens of each: a pure function of plain data.

The engine asks again after it has carried a decision out, until the answer is a step to run.
"""

from dataclasses import dataclass

# one step of priority is worth this many engine steps of waiting
PRIORITY_STEPS = 256


@dataclass(frozen=True, slots=True)
class Job:
    """What is known of one request."""

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
        """Smaller goes first. It never changes, so whoever is first stays first until it ends: nobody starves, and
        nobody is preempted for ever."""
        return self.arrival - self.priority * PRIORITY_STEPS, self.number


@dataclass(frozen=True, slots=True)
class State:
    """free_pages counts those that can be freed by forgetting prefixes."""

    running: tuple[Job, ...]
    waiting: tuple[Job, ...]
    free_pages: int
    free_slots: int
    budget: int  # tokens of one step
    page_tokens: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Exactly one of the three is not empty, or nothing can be done. parts: (request number, tokens)."""

    parts: tuple[tuple[int, int], ...] = ()
    admit: int | None = None
    preempt: int | None = None


def decide(state: State) -> Decision:
    """The next thing to do.

    Decoding requests get their token in every step; what is left of the budget is shared equally between prompts, so
    neither an answer nor a short prompt waits for a long one. When pages run out, the last in rank gives way. A waiting
    request is admitted in rank order once a slot is free and pages for all that it and the running ones have to say
    already; how much they will say is not known, so answers that grow long may be preempted. It takes the slot of a
    running one only with a higher priority.
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
