"""Continuous batching: requests are admitted, computed in packed steps, sampled and freed. One thread uses it.

Who computes a step is a `StepRunner`: of a model in the engine, of arithmetic in a simulation.

Legend: V vocabulary, N wanted rows.
"""

import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import index

import torch
from torch import Tensor

from dsv4.cache.manager import CacheManager
from dsv4.config import ModelConfig
from dsv4.engine.counts import EngineCounts
from dsv4.engine.faults import SamplingError, fault_of
from dsv4.engine.prefill_pace import PrefillPace
from dsv4.engine.request import Request, RequestStatus
from dsv4.engine.runner import Chunk, StepOutput, StepRunner
from dsv4.engine.sampler import logprobs_of
from dsv4.engine.scheduler import SchedulerState, decide
from dsv4.engine.trace import RequestTrace
from dsv4.engine.validation import bounded, check_params, check_tokens, start_sampler
from dsv4.generation import (
    BusyError,
    ContextLengthError,
    FinishReason,
    PromptProgress,
    RequestOptions,
    SamplingParams,
    TokenEvent,
)
from dsv4.observe import log

Emitted = tuple[Request, TokenEvent]
STEP_FAILED = "the engine failed on this step"


class ContinuousBatching:
    """The requests of one runner over a paged cache.

    config: of the model. context_length, sequences, step_tokens, queue, sampled_vocabulary, observer, slowdown: as in
    Engine.
    clock: for deadlines, the progress of prompts and the time of steps, in seconds.
    """

    def __init__(
        self,
        config: ModelConfig,
        cache: CacheManager,
        runner: StepRunner,
        *,
        context_length: int,
        sequences: int,
        step_tokens: int,
        queue: int,
        sampled_vocabulary: int | None,
        observer: Callable[[Request, Tensor], None] | None,
        clock: Callable[[], float],
        slowdown: float | None = None,
    ) -> None:
        self.config, self.context_length, self.step_tokens = config, context_length, step_tokens
        self.sequences, self.queue = sequences, queue
        self.ends = frozenset(config.end_tokens)  # tokens that end every answer
        self.cache, self.runner = cache, runner
        if not runner.repeats:
            cache.disk_off = True
        self.counts = EngineCounts()
        self.clock, self._vocabulary, self._observer = clock, sampled_vocabulary or config.vocab_size, observer
        self.version: int | None = None  # of the weights, as given to `update_weights`; in the events of tokens
        self.admitting = True  # False: no waiting request is admitted
        self.slowdown, self._pace = slowdown, None if slowdown is None else PrefillPace(slowdown)
        self._waiting: list[Request] = []  # in rank order
        self._running: list[Request] = []
        self._inboxes: dict[Request, deque[TokenEvent]] = {}
        self._events: list[Emitted] = []  # not yet returned, so that a step that raises loses none

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._events)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def requests(self) -> tuple[Request, ...]:
        """The running requests, then the waiting ones in the order of their admission."""
        return (*self._running, *self._waiting)

    def submit(self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None) -> Request:
        """Queue a request; `max_tokens` is reduced to the room in the context. Raises ValueError for an empty prompt,
        an id outside the vocabulary or a constraint that cannot be started, ContextLengthError for a prompt that leaves
        no room, BusyError when the queue is full."""
        return self.enter(self.prepare(prompt, params, options))

    def prepare(self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None) -> Request:
        """All of `submit` except queueing; any thread may call it while the engine runs."""
        vocabulary = self.config.vocab_size
        check_tokens(prompt, vocabulary)
        check_params(params, vocabulary)
        room = self.context_length - len(prompt)
        if room < 1:
            raise ContextLengthError(len(prompt), self.context_length)
        options, params = bounded(options), params.without_ends(self.ends)
        return Request(
            tokens=list(map(index, prompt)),
            prompt_length=len(prompt),
            params=replace(params, max_tokens=min(params.max_tokens, room)),
            options=options,
            sampler=start_sampler(params, self._vocabulary, len(prompt), self.ends),
            points=self.cache.points(len(prompt), options.cache_points),
            keep=options.keep,
            trace=RequestTrace() if params.trace else None,
            expires=None if options.deadline is None else self.clock() + options.deadline,
        )

    def enter(self, request: Request) -> Request:
        """Queue a request that `prepare` has made. Raises BusyError."""
        if len(self._waiting) >= self.queue:
            raise BusyError(len(self._waiting))
        request.number, request.arrival = self.counts.requests, self.counts.steps
        self.counts.requests += 1
        self._wait(request)
        return request

    def cancel(self, request: Request) -> None:
        """Stop a request now and free its place; its prefix is kept. Does nothing for a request that has ended.

        The prefix may end with tokens that the client never saw, sampled in the step that held its stop string. They do
        no harm: only a prompt with the same tokens, of the same owner, finds them, and it would compute the same rows.
        """
        if request.status is not RequestStatus.ENDED:
            self._keep(request, request.cached, always=True)
            self._end(request)

    @torch.inference_mode()
    def step(self) -> list[Emitted]:
        """Run one step. Returns the events of its requests.

        A fault that one request causes (its grammar, its sampling, its place in the cache) ends that request with an
        error. When the model itself raises on several requests, they are computed again, and each of them alone from
        then on, so that only the request that causes the fault ends. When nothing of a step could be computed, the step
        raises. Its requests have then failed; the next step ends them and continues with the others.
        """
        began = time.perf_counter()
        self._expire()
        self._look(thorough=False)
        chunks = self._plan()
        try:
            self._run(chunks)
        except BaseException:
            # NOTE: also after Ctrl-C, because the rings may hold rows of a step that did not finish
            for chunk in chunks:
                chunk.request.failed, chunk.request.keep = chunk.request.failed or STEP_FAILED, False
            raise
        self.counts.seconds += time.perf_counter() - began
        emitted, self._events = self._events, []
        return emitted

    def _run(self, chunks: list[Chunk]) -> None:
        if not chunks:
            return
        if self.runner.problem is not None:
            for chunk in chunks:
                self._fail(chunk.request, f"the model cannot run: {self.runner.problem}")
            return
        decoding, began = sum(chunk.wanted for chunk in chunks if chunk.wanted == chunk.count), self.clock()
        groups = [[w for w in chunks if not w.request.suspect], *([w] for w in chunks if w.request.suspect)]
        errors = [self._compute(group) for group in groups if group]
        if None not in errors:
            raise next(error for error in errors if error is not None)
        self.counts.steps += 1
        if self._pace is not None and all(error is None for error in errors):
            prompt = sum(chunk.count for chunk in chunks) - decoding
            self._pace.stepped(decoding, prompt, self.clock() - began)

    def _compute(self, chunks: list[Chunk]) -> BaseException | None:
        """Run the model on several chunks. Returns the exception if there is one chunk; several chunks are put back,
        and each is computed alone."""
        try:
            output = self.runner.run(chunks)
            for i, chunk in enumerate(chunks):
                try:
                    self._advance(chunk, output, i)
                except BaseException as error:  # the border of a request; a panic in a grammar is no Exception
                    self._fail(chunk.request, fault_of(error))
            if self.runner.drafts:
                self.runner.draft(chunks, output)
                self._cut_drafts()
        except BaseException as error:  # the border of a step
            message = fault_of(error)
            if len(chunks) == 1:
                (request,) = (chunk.request for chunk in chunks)
                request.failed, request.keep = message if request.suspect else STEP_FAILED, False
                return error
            log("step_repeated", requests=[chunk.request.number for chunk in chunks], error=message)
            for request in (chunk.request for chunk in chunks if chunk.request.status is RequestStatus.RUNNING):
                request.suspect = True
                self._put_back(request)
        return None

    def generate(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> Iterator[TokenEvent]:
        """Run one request to its end in this thread. Several iterators may be open at once; closing one cancels its
        request."""
        request = self.submit(prompt, params, options)
        inbox = self._inboxes[request] = deque()
        try:
            while True:
                while not inbox:
                    for owner, event in self.step():
                        if owner in self._inboxes:
                            self._inboxes[owner].append(event)
                event = inbox.popleft()
                yield event
                if event.finish is not None:
                    return
        finally:
            del self._inboxes[request]
            self.cancel(request)

    def close(self) -> None:
        """Write the queue of the disk tier. The engine may not be used afterwards."""
        self.cache.shut_down()

    def forget(self) -> None:
        """Drop all kept prefixes and stop using the disk. Call it when the weights change."""
        self.cache.forget()
        for request in self._running:
            # NOTE: no drafts either, because code of others that came with the change would see their rows
            request.keep, request.drafts = False, []

    def _forget(self, why: str) -> None:
        if len(self.cache.prefixes) or not self.cache.disk_off:
            log("prefixes_forgotten", reason=why)
        self.forget()

    def _look(self, *, thorough: bool) -> None:
        """Adapt to a changed model; drop the prefixes of the old one."""
        if self.runner.notice(thorough=thorough):
            self._forget("the model was changed")

    def check_integrity(self) -> bool:
        """True when no request runs or waits, and the number of users of every page and slot equals the number of kept
        prefixes that hold it."""
        return not self.busy and self.cache.prefixes.check_integrity()

    def _wait(self, request: Request) -> None:
        insort(self._waiting, request, key=lambda r: r.view().rank)

    def _expire(self) -> None:
        now = self.clock()
        for request in [r for r in self._running if r.failed is not None]:
            self._fail(request, request.failed or STEP_FAILED)
        late = [r for r in (*self._running, *self._waiting) if r.expires is not None and now >= r.expires]
        for request in late:
            self._end(request)
            abort = TokenEvent(None, FinishReason.ABORT, error="the deadline has passed")
            self._events.append((request, abort))

    def _fail(self, request: Request, message: str) -> None:
        """End a request with an error of its own; its cache is not reused."""
        log("request_failed", request=request.number, error=message)
        request.keep = False
        self._end(request)
        self.counts.failed += 1
        self._events.append((request, TokenEvent(None, FinishReason.ERROR, error=message)))

    def _plan(self) -> list[Chunk]:
        """Carry out the decisions of the scheduler until one is a step to run. A failure ends the request that the
        decision concerns, so that no failure repeats for ever."""
        while self._running or (self._waiting and self.admitting):
            cause = self._running[-1] if self._running else self._waiting[0]
            try:
                decision = decide(self._scheduler_state())
                requests = {r.number: r for r in (*self._running, *self._waiting[:1])}
                if decision.preempt is not None:
                    cause = requests[decision.preempt]
                    self._preempt(cause)
                elif decision.admit is not None:
                    cause = requests[decision.admit]
                    self._admit(cause)
                else:
                    chunks = []
                    for number, count in decision.parts:
                        cause = requests[number]
                        chunks.append(Chunk.of(cause, count))
                        self._grow(chunks[-1])
                    return chunks
            except BaseException as error:  # the border of a request, as in `_run`
                self._fail(cause, fault_of(error))
        return []

    def _scheduler_state(self) -> SchedulerState:
        running = tuple(r.view() for r in self._running)
        # only the first in rank can be admitted next
        first = self._waiting[:1] if self.admitting else []
        waiting = tuple(r.view() for r in first)
        page = self.cache.store.spec.page_tokens
        # the most pages that a decision may need; counting the pages of prefixes is slow, so it is done only below that
        demand = len(running) * (-(-self.step_tokens // page) + 1) + sum(r.known // page + 1 for r in waiting)
        free = self.cache.store.pages.free
        if free < demand:
            free += self.cache.prefixes.reclaimable()
            waiting = tuple(r.view(self.cache.shared_pages(r.tokens, r.options.owner)) for r in first)
        slots, prompts = self.sequences - len(running), None
        if self._pace is not None and any(r.uncached > 1 for r in running):
            prompts = self._pace.tokens(sum(1 + r.drafts for r in running if r.uncached == 1))
        return SchedulerState(running, waiting, free, slots, self.step_tokens, page, prompts)

    def _admit(self, request: Request) -> None:
        """Allocate a slot, and pages for the reused prefix; further pages are allocated before they are written."""
        self._look(thorough=True)
        if self.runner.weights_changed():
            self._forget("weights were written to")
        request.place, request.cached = self.cache.open(request.tokens, request.options.owner)
        if request.started is None:
            request.reused = min(request.cached, request.prompt_length)
            self.counts.reused_tokens += request.reused
            request.started = self.clock()
        request.predicted = max(0, request.cached - 1)
        request.predicted_from = max(0, request.cached - self.config.sliding_window + 1)
        request.status = RequestStatus.RUNNING
        self._waiting.remove(request)
        self._running.append(request)

    def _preempt(self, request: Request) -> None:
        """Preempt a request; it waits with its old rank. Its state is kept as a prefix, so it resumes from memory,
        from disk, or, if neither had room, by computing the state again."""
        self._keep(request, request.cached, always=True)
        self._put_back(request)
        self.counts.preempted += 1

    def _put_back(self, request: Request) -> None:
        self._free(request)
        request.drafts, request.cached, request.predicted, request.predicted_from = [], 0, 0, 0
        request.status = RequestStatus.WAITING
        self._wait(request)

    def _grow(self, chunk: Chunk) -> None:
        chunk.request.place = self.cache.grow(chunk.request.running_place, chunk.end)

    def _advance(self, chunk: Chunk, output: StepOutput, which: int) -> None:
        """Update the number of cached tokens, and sample from the rows of logits as long as each draft equals the
        sampled token."""
        request, drafts = chunk.request, chunk.drafts
        if request.trace is not None and (piece := output.traced(which, chunk)) is not None:
            told = request.trace.add(piece)
            self._events += [(request, TokenEvent(None, trace=told))] if told is not None else []
        rows_NV = output.logits_NV[output.logits_of[which]]
        if not len(rows_NV):
            _check_numbers(output.broken[which], chunk.end)
            request.cached = chunk.end
            self.counts.prompt_tokens += chunk.count
            self._keep(request, request.cached)
            self._progress(request)
            return
        if request.generated == 0:
            self.counts.prompt_tokens += chunk.count
            self._progress(request, chunk.end)
        request.drafts = []
        self.counts.drafted += len(drafts)
        for i in range(len(rows_NV)):
            request.cached = len(request.tokens)
            _check_numbers(output.broken[which], request.cached)
            if i == 0 and request.generated == 0:
                # rings are addressed by position, so this state also serves the prompt without its last token
                self._keep(request, request.prompt_length - 1, always=True)
            event = self._sample(request, rows_NV[i], drafts[i] if i < len(drafts) else None)
            self._events.append((request, event))
            if event.finish is not None:
                self._keep(request, request.cached, always=True)
                self._end(request)
            if i < len(drafts):
                if event.finish is not None or event.token != drafts[i]:
                    break
                self.counts.accepted += 1

    def _sample(self, request: Request, logits_V: Tensor, draft: int | None) -> TokenEvent:
        params = request.params
        if self._observer is not None:
            self._observer(request, logits_V)
        token = request.sampler.choose(logits_V)
        scores = logprobs_of(request.sampler.known(logits_V), token, params.top_logprobs) if params.logprobs else None
        reused = request.reused if request.generated == 0 else None
        request.tokens.append(token)
        self.counts.generated_tokens += 1
        finish = None
        if token in self.ends or token in params.stop_ids:
            finish = FinishReason.STOP
        elif request.generated >= params.max_tokens:
            finish = FinishReason.LENGTH
        trace = None if request.trace is None else request.trace.take(request.sampler.kept, request.sampler.mass)
        return TokenEvent(token, finish, scores, reused=reused, trace=trace, version=self.version, draft=draft)

    def _progress(self, request: Request, done: int | None = None) -> None:
        if not request.options.progress or request.generated:
            return
        done, total = done or request.cached, request.prompt_length
        assert request.started is not None
        fresh, seconds = done - request.reused, self.clock() - request.started
        eta = seconds / fresh * (total - done) if fresh > 0 else None
        event = TokenEvent(None, progress=PromptProgress(done, total, request.reused, eta, seconds))
        self._events.append((request, event))

    def _keep(self, request: Request, length: int, *, always: bool = False) -> None:
        """Keep a prefix if its length is one of the request's points, or if `always` is set."""
        at = bisect_left(request.points, length)
        marked = at < len(request.points) and request.points[at] == length
        place = request.place
        if place is None or not (length and request.keep and (marked or always) and self.runner.repeats):
            return
        try:
            self.cache.keep(request.tokens[:length], request.options.owner, place)
        except BaseException as error:  # a border: keeping a prefix only saves time and must not fail an answer
            log("prefix_not_kept", request=request.number, error=fault_of(error))

    def _cut_drafts(self) -> None:
        """Remove the drafts for which the next step has no room."""
        for request in self._running:
            request.drafts = request.drafts[: request.room]

    def _free(self, request: Request) -> None:
        self._running.remove(request)
        self.cache.close(request.running_place)
        request.place = None

    def _end(self, request: Request) -> None:
        if request.status is RequestStatus.RUNNING:
            self._free(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        request.status = RequestStatus.ENDED
        self.counts.ended += 1


def _check_numbers(broken: int | None, reached: int) -> None:
    """Raises SamplingError when one of the first `reached` positions has numbers that are not finite; later positions
    are drafts, which may be rejected."""
    if broken is not None and broken < reached:
        raise SamplingError(
            f"the model's numbers are not finite (NaN or infinity) at position {broken}: its weights are damaged, or "
            "this sequence overflows them"
        )
