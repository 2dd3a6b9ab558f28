"""The engine: admits requests, runs one packed step at a time, samples, frees. Single-threaded and synchronous.

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

from dsv4.cache import CacheDtype, CacheStore
from dsv4.cache.disk import DiskTier
from dsv4.cache.format import default_cache_dtype
from dsv4.cache.manager import CacheManager
from dsv4.cache.prefix import ReusePolicy
from dsv4.engine.counts import Counts
from dsv4.engine.door import bounded, check_params, check_tokens, start_sampler
from dsv4.engine.faults import SamplingError, fault_of
from dsv4.engine.request import Request, State
from dsv4.engine.runner import Ran, Runner, Work
from dsv4.engine.sampler import logprobs_of
from dsv4.engine.scheduler import State as Load
from dsv4.engine.scheduler import decide
from dsv4.engine.trace import RequestTrace
from dsv4.generation import (
    BusyError,
    ContextLengthError,
    FinishReason,
    PromptProgress,
    RequestOptions,
    SamplingParams,
    TokenEvent,
)
from dsv4.model.transformer import Transformer
from dsv4.observe import log

Emitted = tuple[Request, TokenEvent]
STEP_FAILED = "the engine failed on this step"


class Engine:
    """Continuous batching over a paged cache.

    context_length: largest prompt plus completion. cache_tokens: source tokens of all running sequences and kept
    prefixes together (default: a full context for each sequence; memory is committed only as it is written).
    sequences: how many run at once. step_tokens: token budget of one step; longer prompts are prefilled in chunks
    between the others' tokens. cache_dtype: how rows are stored; default: the model's activation dtype, `release` for a
    model in release numerics. reuse: what is kept of finished prefixes. disk: where prefixes outlive the process.
    speculate: let the prediction block draft a token per step. queue: how many may wait. sampled_vocabulary: ids from
    here on are never chosen: rows the model has beyond its tokenizer (None = all may be). fused: as in Runner.
    observer: is told of each request and the row of logits before a token of it is sampled.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        context_length: int,
        cache_tokens: int | None = None,
        sequences: int = 8,
        step_tokens: int = 512,
        cache_dtype: CacheDtype | None = None,
        reuse: ReusePolicy | None = None,
        disk: DiskTier | None = None,
        speculate: bool = False,
        queue: int = 1024,
        sampled_vocabulary: int | None = None,
        fused: bool | None = None,
        observer: Callable[[Request, Tensor], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 1 <= context_length <= model.config.max_position_embeddings:
            raise ValueError(
                f"context_length must be in [1, {model.config.max_position_embeddings}], got {context_length}"
            )
        for name, value in (("sequences", sequences), ("step_tokens", step_tokens), ("queue", queue)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        rows = model.config.vocab_size
        if sampled_vocabulary is not None and not 1 <= sampled_vocabulary <= rows:
            raise ValueError(f"sampled_vocabulary must be in [1, {rows}], got {sampled_vocabulary}")
        if speculate and not model.mtp:
            raise ValueError("speculate needs a model with a prediction block (num_nextn_predict_layers is 0)")
        self.model, self.context_length, self.step_tokens = model, context_length, step_tokens
        self.sequences, self.queue = sequences, queue
        self.ends = frozenset(model.config.end_tokens)  # tokens that end every answer
        policy = reuse or ReusePolicy()
        store = CacheStore(
            model.config,
            cache_dtype or default_cache_dtype(model),
            tokens=max(cache_tokens or sequences * context_length, context_length),
            slots=sequences + policy.snapshots,
        )
        self.cache = CacheManager(store, policy, disk)
        self.runner = Runner(model, store, predict=speculate, fused=fused)
        if not self.runner.repeats:
            self.cache.disk_off = True
        self.counts = Counts()
        self._clock, self._vocabulary, self._observer = clock, sampled_vocabulary or rows, observer
        self.version: int | None = None  # of the weights, where somebody counts: events carry it
        self.admitting = True  # False: no waiting request is admitted
        self._waiting: list[Request] = []  # in rank order
        self._running: list[Request] = []
        self._inboxes: dict[Request, deque[TokenEvent]] = {}
        self._events: list[Emitted] = []  # not yet handed out: a step that raises loses none

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._events)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None) -> Request:
        """Queue a request; `max_tokens` is cut to what fits. Raises ValueError for an empty prompt, an id outside the
        vocabulary or a constraint that cannot be started, ContextLengthError for a prompt that leaves no room,
        BusyError when the queue is full."""
        return self.enter(self.prepare(prompt, params, options))

    def prepare(self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None) -> Request:
        """Everything of `submit` but the queue; any thread may call it while the engine runs."""
        vocabulary = self.model.config.vocab_size
        check_tokens(prompt, vocabulary)
        check_params(params, vocabulary)
        room = self.context_length - len(prompt)
        if room < 1:
            raise ContextLengthError(len(prompt), self.context_length)
        options = bounded(options)
        return Request(
            tokens=list(map(index, prompt)),
            prompt_length=len(prompt),
            params=replace(params, max_tokens=min(params.max_tokens, room)),
            options=options,
            sampler=start_sampler(params, self._vocabulary, len(prompt)),
            points=self.cache.points(len(prompt), options.cache_points),
            trace=RequestTrace() if params.trace else None,
            expires=None if options.deadline is None else self._clock() + options.deadline,
        )

    def enter(self, request: Request) -> Request:
        """Queue what `prepare` has made. Raises BusyError."""
        if len(self._waiting) >= self.queue:
            raise BusyError(len(self._waiting))
        request.number, request.arrival = self.counts.requests, self.counts.steps
        self.counts.requests += 1
        self._wait(request)
        return request

    def cancel(self, request: Request) -> None:
        """Stop a request now and free its place; what it has computed is kept. Does nothing when it has ended."""
        if request.state is not State.ENDED:
            self._keep(request, request.cached, always=True)
            self._end(request)

    @torch.inference_mode()
    def step(self) -> list[Emitted]:
        """Run one step; returns the events of the requests that moved.

        What one request causes (its grammar, its sampling, its place in the cache) ends that request with an error.
        When the model itself raises on several requests, they are computed again, each alone from then on, so that
        only the one that causes it ends. When nothing of a step could be computed, the step raises: its requests have
        failed, the next step ends them and goes on with the others.
        """
        began = time.perf_counter()
        self._expire()
        self._look(thorough=False)
        works = self._plan()
        try:
            self._run(works)
        except BaseException:
            # NOTE: also Ctrl-C: the rings may hold rows of a step that never happened
            for work in works:
                work.request.failed, work.request.keep = work.request.failed or STEP_FAILED, False
            raise
        self.counts.seconds += time.perf_counter() - began
        emitted, self._events = self._events, []
        return emitted

    def _run(self, works: list[Work]) -> None:
        if not works:
            return
        if self.runner.problem is not None:
            for work in works:
                self._fail(work.request, f"the model cannot run: {self.runner.problem}")
            return
        groups = [[w for w in works if not w.request.suspect], *([w] for w in works if w.request.suspect)]
        errors = [self._compute(group) for group in groups if group]
        if None not in errors:
            raise next(error for error in errors if error is not None)
        self.counts.steps += 1

    def _compute(self, works: list[Work]) -> BaseException | None:
        """Works through the model together. What it raised for a single one is returned; several are put back to be
        computed alone."""
        try:
            ran = self.runner.run(works)
            for i, work in enumerate(works):
                try:
                    self._advance(work, ran, i)
                except BaseException as error:  # the border of a request: a panic in a grammar is no Exception
                    self._fail(work.request, fault_of(error))
            if self.runner.predict:
                self.runner.draft(works, ran)
                self._cut_drafts()
        except BaseException as error:  # the border of a step
            message = fault_of(error)
            if len(works) == 1:
                (request,) = (work.request for work in works)
                request.failed, request.keep = message if request.suspect else STEP_FAILED, False
                return error
            log("step_repeated", requests=[work.request.number for work in works], error=message)
            for request in (work.request for work in works if work.request.state is State.RUNNING):
                request.suspect = True
                self._put_back(request)
        return None

    def generate(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> Iterator[TokenEvent]:
        """Run one request to its end in this thread; several iterators may be open at once. Closing one cancels it."""
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
        """Write what is still to be written to disk. The engine may not be used afterwards."""
        self.cache.shut_down()

    def forget(self) -> None:
        """Drop all kept prefixes; call it when the weights change. The disk is not used any more."""
        self.cache.forget()
        for request in self._running:
            request.keep = False

    def _forget(self, why: str) -> None:
        if len(self.cache.prefixes) or not self.cache.disk_off:
            log("prefixes_forgotten", reason=why)
        self.forget()

    def _look(self, *, thorough: bool) -> None:
        """The model in hand is the one that runs."""
        if self.runner.notice(thorough=thorough):
            self._forget("the model was changed")

    def check_integrity(self) -> bool:
        """True when no request runs or waits, and the number of users of every page and slot equals the number of kept
        prefixes that hold it."""
        return not self.busy and self.cache.prefixes.check_integrity()

    def _wait(self, request: Request) -> None:
        insort(self._waiting, request, key=lambda r: r.job().rank)

    def _expire(self) -> None:
        now = self._clock()
        for request in [r for r in self._running if r.failed is not None]:
            self._fail(request, request.failed or STEP_FAILED)
        late = [r for r in (*self._running, *self._waiting) if r.expires is not None and now >= r.expires]
        for request in late:
            self._end(request)
            abort = TokenEvent(None, FinishReason.ABORT, error="the deadline has passed")
            self._events.append((request, abort))

    def _fail(self, request: Request, message: str) -> None:
        """End a request with an error of its own; nobody may reuse what it has."""
        log("request_failed", request=request.number, error=message)
        request.keep = False
        self._end(request)
        self.counts.failed += 1
        self._events.append((request, TokenEvent(None, FinishReason.ERROR, error=message)))

    def _plan(self) -> list[Work]:
        """Ask the scheduler until there is a step to run; carry out what it says before. Whoever a part of the plan is
        for answers for its failure, so that no failure comes again for ever."""
        while self._running or (self._waiting and self.admitting):
            cause = self._running[-1] if self._running else self._waiting[0]
            try:
                decision = decide(self._load())
                requests = {r.number: r for r in (*self._running, *self._waiting[:1])}
                if decision.preempt is not None:
                    cause = requests[decision.preempt]
                    self._preempt(cause)
                elif decision.admit is not None:
                    cause = requests[decision.admit]
                    self._admit(cause)
                else:
                    works = []
                    for number, count in decision.parts:
                        cause = requests[number]
                        works.append(Work.of(cause, count))
                        self._grow(works[-1])
                    return works
            except BaseException as error:  # the border of a request, as in `_run`
                self._fail(cause, fault_of(error))
        return []

    def _load(self) -> Load:
        running = tuple(r.job() for r in self._running)
        # only the first in rank may come next
        first = self._waiting[:1] if self.admitting else []
        waiting = tuple(r.job() for r in first)
        page = self.cache.store.spec.page_tokens
        # what could be asked for at most; counting what prefixes could give back is only worth it when that is short
        demand = len(running) * (-(-self.step_tokens // page) + 1) + sum(j.known // page + 1 for j in waiting)
        free = self.cache.store.pages.free
        if free < demand:
            free += self.cache.prefixes.reclaimable()
            waiting = tuple(r.job(self.cache.shared_pages(r.tokens, r.options.owner)) for r in first)
        return Load(running, waiting, free, self.sequences - len(running), self.step_tokens, page)

    def _admit(self, request: Request) -> None:
        """Take a slot, and pages for the reused prefix; further pages are taken when they are written."""
        self._look(thorough=True)
        if self.runner.weights_changed():
            self._forget("weights were written to")
        request.place, request.cached = self.cache.open(request.tokens, request.options.owner)
        if request.started is None:
            request.reused = min(request.cached, request.prompt_length)
            self.counts.reused_tokens += request.reused
            request.started = self._clock()
        request.predicted = max(0, request.cached - 1)
        request.predicted_from = max(0, request.cached - self.model.config.sliding_window + 1)
        request.state = State.RUNNING
        self._waiting.remove(request)
        self._running.append(request)

    def _preempt(self, request: Request) -> None:
        """Preempt a request; it waits with its old rank. Its state is kept like any prefix, so it resumes from memory,
        from disk, or, if neither had room, by computing the state again."""
        self._keep(request, request.cached, always=True)
        self._put_back(request)
        self.counts.preempted += 1

    def _put_back(self, request: Request) -> None:
        self._free(request)
        request.drafts, request.cached, request.predicted, request.predicted_from = [], 0, 0, 0
        request.state = State.WAITING
        self._wait(request)

    def _grow(self, work: Work) -> None:
        work.request.place = self.cache.grow(work.request.running_place, work.end)

    def _advance(self, work: Work, ran: Ran, which: int) -> None:
        """Count what is cached now; sample from the rows of logits while they continue what was sampled."""
        request, drafts = work.request, work.request.drafts
        if request.trace is not None and (piece := ran.traced(which, work)) is not None:
            told = request.trace.add(piece)
            self._events += [(request, TokenEvent(None, trace=told))] if told is not None else []
        rows_NV = ran.logits_NV[ran.logits_of[which]]
        if not len(rows_NV):
            _check_numbers(ran.broken[which], work.end)
            request.cached = work.end
            self.counts.prompt_tokens += work.count
            self._keep(request, request.cached)
            self._progress(request)
            return
        if request.generated == 0:
            self.counts.prompt_tokens += work.count
            self._progress(request, work.end)
        request.drafts = []
        for i in range(len(rows_NV)):
            request.cached = len(request.tokens)
            _check_numbers(ran.broken[which], request.cached)
            if i == 0 and request.generated == 0:
                # rings are addressed by position: as they are now, they also are as they were one token before
                self._keep(request, request.prompt_length - 1, always=True)
            event = self._sample(request, rows_NV[i])
            self._events.append((request, event))
            if event.finish is not None:
                self._keep(request, request.cached, always=True)
                self._end(request)
            if i < len(drafts):
                self.counts.drafted += 1
                if event.finish is not None or event.token != drafts[i]:
                    break
                self.counts.accepted += 1

    def _sample(self, request: Request, logits_V: Tensor) -> TokenEvent:
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
        return TokenEvent(token, finish, scores, reused=reused, trace=trace, version=self.version)

    def _progress(self, request: Request, done: int | None = None) -> None:
        if not request.options.progress or request.generated:
            return
        done, total = done or request.cached, request.prompt_length
        assert request.started is not None
        fresh = done - request.reused
        eta = (self._clock() - request.started) / fresh * (total - done) if fresh > 0 else None
        event = TokenEvent(None, progress=PromptProgress(done, total, request.reused, eta))
        self._events.append((request, event))

    def _keep(self, request: Request, length: int, *, always: bool = False) -> None:
        """Keep a prefix when its length is one of the marked points, or in any case."""
        at = bisect_left(request.points, length)
        marked = at < len(request.points) and request.points[at] == length
        place = request.place
        if place is None or not (length and request.keep and (marked or always) and self.runner.repeats):
            return
        try:
            self.cache.keep(request.tokens[:length], request.options.owner, place)
        except BaseException as error:  # a border: what may only save time must not cost the answer
            log("prefix_not_kept", request=request.number, error=fault_of(error))

    def _cut_drafts(self) -> None:
        """Remove the drafts of answers that end with the next token, and of those that are traced: a draft that is not
        accepted has no trace."""
        for request in self._running:
            if request.trace is not None or request.generated + 1 >= request.params.max_tokens:
                request.drafts = []

    def _free(self, request: Request) -> None:
        self._running.remove(request)
        self.cache.close(request.running_place)
        request.place = None

    def _end(self, request: Request) -> None:
        if request.state is State.RUNNING:
            self._free(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        request.state = State.ENDED
        self.counts.ended += 1


def _check_numbers(broken: int | None, reached: int) -> None:
    """Raises SamplingError when one of the first `reached` positions broke; a draft behind them may still be wrong."""
    if broken is not None and broken < reached:
        raise SamplingError(
            f"the model's numbers are not finite (NaN or infinity) at position {broken}: its weights are damaged, or "
            "this sequence overflows them"
        )
