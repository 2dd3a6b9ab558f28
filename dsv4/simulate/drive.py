"""Requests of a trace against continuous batching on a clock that only steps move: an engine's or a simulation's."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heappop, heappush
from itertools import accumulate, count, pairwise

from dsv4.engine.batching import ContinuousBatching, Emitted
from dsv4.engine.request import Request
from dsv4.generation import FinishReason, RequestOptions, SamplingParams, points_to_keep
from dsv4.workload.timing import Timing
from dsv4.workload.trace import Session, TraceRequest

FIRST_ID = 64  # ids below may be control tokens


@dataclass(slots=True)
class SimulatedClock:
    """Seconds since the start of a run."""

    now: float = 0.0


@dataclass(slots=True)
class _Running:
    """A session whose request `turn` runs. answers: tokens by the id of the block that holds them."""

    session: Session
    turn: int = 0
    timing: Timing = field(default_factory=lambda: Timing(0.0, 0.0))
    answers: dict[str, list[int]] = field(default_factory=dict)

    @property
    def request(self) -> TraceRequest:
        return self.session[self.turn]


@dataclass(slots=True)
class Drive:
    """One run. step: runs one step of `batching` and moves the clock. sampled: called with each request before it is
    queued, for what replaces its sampler. users: sessions at a time, each followed by the next; None = each arrives at
    its own time."""

    batching: ContinuousBatching
    clock: SimulatedClock
    step: Callable[[], list[Emitted]]
    sampled: Callable[[Request], None] = lambda request: None
    users: int | None = None
    timings: list[Timing] = field(default_factory=list)
    _due: list[tuple[float, int, _Running]] = field(default_factory=list)
    _order: "count[int]" = field(default_factory=count)

    def run(self, sessions: Sequence[Session]) -> list[Timing]:
        """The timings of all requests. Raises ValueError for a request that does not fit into the context."""
        for _ in self.steps(sessions):
            pass
        return self.timings

    def steps(self, sessions: Sequence[Session]) -> Iterator[None]:
        """`run` step by step: gives control back after each; `timings` is whole at the end."""
        waiting = list(reversed(sessions))
        running: dict[Request, _Running] = {}
        if self.users is None:
            for session in sessions:
                self._enter(_Running(session), session[0].at or 0.0)
            waiting = []
        for _ in range(self.users or 0):
            self._next(waiting)
        while self._due or self.batching.busy:
            if not self.batching.busy:
                self.clock.now = max(self.clock.now, self._due[0][0])
            while self._due and self._due[0][0] <= self.clock.now:
                due, _, one = heappop(self._due)
                running[self._submit(one, due)] = one
            for request, event in self.step():
                one = running[request]
                if event.token is not None:
                    one.timing.arrivals.append(self.clock.now)
                if event.reused is not None:
                    one.timing.cached = event.reused
                if event.finish is not None:
                    del running[request]
                    self._end(one, request, event.finish, waiting)
            yield

    def _submit(self, one: _Running, due: float) -> Request:
        wanted, config = one.request, self.batching.config
        prompt: list[int] = []
        for block in wanted.blocks:
            prompt += one.answers.get(block.id) or block_tokens(block.id, block.tokens, config.vocab_size)
        one.timing = Timing(due, self.clock.now, prompt=len(prompt), cached=0, wanted=wanted.output)
        self.timings.append(one.timing)
        params = SamplingParams(max_tokens=wanted.output, temperature=0)
        request = self.batching.prepare(prompt, params, RequestOptions(cache_points=borders(wanted)))
        self.sampled(request)
        return self.batching.enter(request)

    def _end(self, one: _Running, request: Request, finish: FinishReason, waiting: list[Session]) -> None:
        timing = one.timing
        timing.end, timing.generated = self.clock.now, request.generated
        if finish in (FinishReason.ERROR, FinishReason.ABORT):
            timing.error = str(finish)
        one.answers[one.request.answer_id] = request.tokens[request.prompt_length :]
        one.turn += 1
        if timing.error or one.turn == len(one.session):
            self._next(waiting)
            return
        follows = self.clock.now + one.request.delay
        self._enter(one, follows if one.request.at is None else max(follows, one.request.at))

    def _next(self, waiting: list[Session]) -> None:
        """Begin the next session, if there is one."""
        if waiting:
            self._enter(_Running(waiting.pop()), self.clock.now)

    def _enter(self, one: _Running, due: float) -> None:
        heappush(self._due, (due, next(self._order), one))


def borders(request: TraceRequest) -> tuple[int, ...]:
    """The positions at which the server would have a prefix of this prompt kept."""
    ends = list(accumulate(block.tokens for block in request.blocks))
    pairs = zip(ends, pairwise(request.blocks), strict=False)
    return points_to_keep([end for end, (block, following) in pairs if block.role != following.role])


@lru_cache(4096)
def block_tokens(block_id: str, length: int, vocabulary: int) -> tuple[int, ...]:
    """Tokens of a block: the same for the same id, and others for another."""
    chance = random.Random(block_id)
    low = min(FIRST_ID, vocabulary - 1)
    return tuple(chance.choices(range(low, vocabulary), k=length))
