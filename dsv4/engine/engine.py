"""The engine: admits requests, runs one packed step at a time, samples, frees. Single-threaded and synchronous.

V vocabulary.
"""

import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dsv4.cache import CacheDtype, CacheStore
from dsv4.cache.disk import DiskTier
from dsv4.cache.prefix import PrefixCache, ReusePolicy
from dsv4.cache.reuse import Reuse
from dsv4.engine.request import Request, State
from dsv4.engine.runner import Ran, Runner, Work
from dsv4.engine.sampler import Sampler, logprobs_of
from dsv4.engine.scheduler import State as Load
from dsv4.engine.scheduler import decide
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

Emitted = tuple[Request, TokenEvent]
STEP_FAILED = "the engine failed on this step"


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Raises ValueError for an empty prompt or a token id outside the vocabulary."""
    if not tokens:
        raise ValueError("the prompt is empty")
    bad = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if bad is not None:
        raise ValueError(f"prompt token ids must be in [0, {vocabulary}), got {bad}")


@dataclass(slots=True)
class Counts:
    """What the engine has done since it was made; for metrics pages. Seconds are spent inside steps."""

    requests: int = 0
    ended: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    preempted: int = 0
    seconds: float = 0.0


class Engine:
    """Continuous batching over a paged cache.

    context_length: largest prompt plus completion. cache_tokens: source tokens of all running sequences and kept
    prefixes together (default: a full context for each sequence; memory is committed only as it is written).
    sequences: how many run at once. step_tokens: token budget of one step; longer prompts are prefilled in chunks
    between the others' tokens. cache_dtype: how rows are stored; default: the model's activation dtype, `release` for a
    model in release numerics. reuse: what is kept of finished prefixes. disk: where prefixes outlive the process.
    speculate: let the prediction block draft a token per step. queue: how many may wait.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 1 <= context_length <= model.config.max_position_embeddings:
            raise ValueError(
                f"context_length must be in [1, {model.config.max_position_embeddings}], got {context_length}"
            )
        for name, value in (("sequences", sequences), ("step_tokens", step_tokens), ("queue", queue)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if speculate and not model.mtp:
            raise ValueError("speculate needs a model with a prediction block (num_nextn_predict_layers is 0)")
        self.model, self.context_length, self.step_tokens = model, context_length, step_tokens
        self.sequences, self.queue, self.eos = sequences, queue, model.config.eos_token_id
        policy = reuse or ReusePolicy()
        self.store = CacheStore(
            model.config,
            cache_dtype or default_cache_dtype(model),
            tokens=max(cache_tokens or sequences * context_length, context_length),
            slots=sequences + policy.snapshots,
        )
        self.prefixes = PrefixCache(self.store, policy)
        self.reuse = Reuse(self.prefixes, disk)
        self.runner = Runner(model, self.store, predict=speculate)
        self.counts = Counts()
        self._clock = clock
        self.admitting = True  # False: who waits goes on waiting
        self._waiting: list[Request] = []  # in rank order
        self._running: list[Request] = []
        self._inboxes: dict[Request, deque[TokenEvent]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None) -> Request:
        """Queue a request; `max_tokens` is cut to what fits. Raises ValueError for an empty prompt or an id outside the
        vocabulary, ContextLengthError for a prompt that leaves no room, BusyError when the queue is full."""
        check_tokens(prompt, self.model.config.vocab_size)
        room = self.context_length - len(prompt)
        if room < 1:
            raise ContextLengthError(len(prompt), self.context_length)
        if len(self._waiting) >= self.queue:
            raise BusyError(len(self._waiting))
        options = options or RequestOptions()
        request = Request(
            number=self.counts.requests,
            arrival=self.counts.steps,
            tokens=list(prompt),
            prompt_length=len(prompt),
            params=replace(params, max_tokens=min(params.max_tokens, room)),
            options=options,
            sampler=Sampler(params),
            points=self._points(len(prompt), options),
            expires=None if options.deadline is None else self._clock() + options.deadline,
        )
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
        """Run one step; returns the events of the requests that moved. When it raises, the requests of that step have
        failed: the next step ends them with an error and goes on with the others."""
        began = time.perf_counter()
        emitted = self._expire()
        works = self._plan()
        try:
            emitted += self._run(works)
        except BaseException:
            # NOTE: also Ctrl-C: the rings may hold rows of a step that never happened
            for work in works:
                work.request.failed, work.request.keep = True, False
            raise
        self.counts.seconds += time.perf_counter() - began
        return emitted

    def _run(self, works: list[Work]) -> list[Emitted]:
        emitted: list[Emitted] = []
        if works:
            ran = self.runner.run(works)
            for i, work in enumerate(works):
                emitted += self._advance(work, ran, i)
            if self.runner.predict:
                self.runner.draft(works, ran)
                self._cut_drafts()
            self.counts.steps += 1
        return emitted

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
        if self.reuse.disk is not None:
            self.reuse.disk.close()

    def forget(self) -> None:
        """Drop all kept prefixes: what must happen when the weights change. Prefixes on disk belong to the old weights
        too, so the disk is not used any more."""
        self.prefixes.clear()
        self.reuse = Reuse(self.prefixes, None)
        for request in self._running:
            request.keep = False

    def check_integrity(self) -> bool:
        """True when nothing runs or waits and every page and slot is free or held by a kept prefix, as often as by the
        records."""
        return not self.busy and self.prefixes.check_integrity()

    def _points(self, prompt_length: int, options: RequestOptions) -> list[int]:
        """Where chunks of the prompt end so that the prefix can be kept."""
        spacing = self.prefixes.policy.spacing
        if not self.reuse.active:
            return []
        own = {p for p in options.cache_points if 0 < p < prompt_length}
        return sorted(own | set(range(spacing, prompt_length, spacing)))

    def _wait(self, request: Request) -> None:
        insort(self._waiting, request, key=lambda r: r.job().rank)

    def _expire(self) -> list[Emitted]:
        now = self._clock()
        failed = [r for r in self._running if r.failed]
        late = [r for r in (*self._running, *self._waiting) if r.expires is not None and now >= r.expires]
        late = [r for r in late if r not in failed]
        for request in (*failed, *late):
            self._end(request)
        error = TokenEvent(None, FinishReason.ERROR, error=STEP_FAILED)
        abort = TokenEvent(None, FinishReason.ABORT, error="the deadline has passed")
        return [*((r, error) for r in failed), *((r, abort) for r in late)]

    def _plan(self) -> list[Work]:
        """Ask the scheduler until there is a step to run; carry out what it says before."""
        while self._running or (self._waiting and self.admitting):
            decision = decide(self._load())
            requests = {r.number: r for r in (*self._running, *self._waiting[:1])}
            if decision.preempt is not None:
                self._preempt(requests[decision.preempt])
            elif decision.admit is not None:
                self._admit(requests[decision.admit])
            else:
                works = [Work.of(requests[number], count) for number, count in decision.parts]
                for work in works:
                    self._grow(work)
                return works
        return []

    def _load(self) -> Load:
        running = tuple(r.job() for r in self._running)
        # only the first in rank may come next
        first = self._waiting[:1] if self.admitting else []
        waiting = tuple(r.job() for r in first)
        page = self.store.spec.page_tokens
        # what could be asked for at most; counting what prefixes could give back is only worth it when that is short
        demand = len(running) * (-(-self.step_tokens // page) + 1) + sum(j.known // page + 1 for j in waiting)
        free = self.store.pages.free
        if free < demand:
            free += self.prefixes.reclaimable()
            waiting = tuple(r.job(self.reuse.shared_pages(r.tokens, r.options.owner)) for r in first)
        return Load(running, waiting, free, self.sequences - len(running), self.step_tokens, page)

    def _admit(self, request: Request) -> None:
        """A slot and pages for what is reused; the rest of the pages is taken as it is written."""
        request.place, request.cached = self.reuse.open(request.tokens, request.options.owner)
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
        """Take its place away; it waits in its old rank. What it has is kept like any prefix, so it comes back from
        memory, from disk, or, when neither had room, by computing it again."""
        self._keep(request, request.cached, always=True)
        self._free(request)
        request.drafts, request.cached, request.predicted, request.predicted_from = [], 0, 0, 0
        request.state = State.WAITING
        self._wait(request)
        self.counts.preempted += 1

    def _grow(self, work: Work) -> None:
        place = work.request.place
        assert place is not None
        count = self.store.spec.pages_for(work.end) - len(place.pages)
        if count > 0:
            self.prefixes.make_room(pages=count)
            work.request.place = replace(place, pages=[*place.pages, *self.store.pages.take(count)])

    def _advance(self, work: Work, ran: Ran, index: int) -> list[Emitted]:
        """Count what is cached now; sample from the rows of logits while they continue what was sampled."""
        request, drafts = work.request, work.request.drafts
        rows_NV = ran.logits_NV[ran.logits_of[index]]
        if not len(rows_NV):
            request.cached = work.end
            self.counts.prompt_tokens += work.count
            self._keep(request, request.cached)
            return self._progress(request)
        emitted: list[Emitted] = []
        if request.generated == 0:
            self.counts.prompt_tokens += work.count
            emitted += self._progress(request, work.end)
        request.drafts = []
        for i in range(len(rows_NV)):
            request.cached = len(request.tokens)
            if i == 0 and request.generated == 0:
                # rings are addressed by position: as they are now, they also are as they were one token before
                self._keep(request, request.prompt_length - 1, always=True)
            event = self._sample(request, rows_NV[i])
            emitted.append((request, event))
            if i < len(drafts):
                self.counts.drafted += 1
                if event.finish is not None or event.token != drafts[i]:
                    break
                self.counts.accepted += 1
        if emitted[-1][1].finish is not None:
            self._keep(request, request.cached, always=True)
            self._end(request)
        return emitted

    def _sample(self, request: Request, logits_V: Tensor) -> TokenEvent:
        params = request.params
        token = request.sampler.choose(logits_V)
        scores = logprobs_of(logits_V, token, params.top_logprobs) if params.logprobs else None
        reused = request.reused if request.generated == 0 else None
        request.tokens.append(token)
        self.counts.generated_tokens += 1
        finish = None
        if token == self.eos or token in params.stop_ids:
            finish = FinishReason.STOP
        elif request.generated >= params.max_tokens:
            finish = FinishReason.LENGTH
        return TokenEvent(token, finish, scores, reused=reused)

    def _progress(self, request: Request, done: int | None = None) -> list[Emitted]:
        if not request.options.progress or request.generated:
            return []
        done, total = done or request.cached, request.prompt_length
        assert request.started is not None
        fresh = done - request.reused
        eta = (self._clock() - request.started) / fresh * (total - done) if fresh > 0 else None
        return [(request, TokenEvent(None, progress=PromptProgress(done, total, request.reused, eta)))]

    def _keep(self, request: Request, length: int, *, always: bool = False) -> None:
        """Keep a prefix when its length is one of the marked points, or in any case."""
        at = bisect_left(request.points, length)
        marked = at < len(request.points) and request.points[at] == length
        place = request.place
        if place is None or not (length and request.keep and self.reuse.active and (marked or always)):
            return
        # a prefix without windows says nothing new before it is past what it began with
        if length >= place.entries_from:
            self.reuse.keep(request.tokens[:length], request.options.owner, place)

    def _cut_drafts(self) -> None:
        """No draft where the answer ends with the next token anyway."""
        for request in self._running:
            if request.generated + 1 >= request.params.max_tokens:
                request.drafts = []

    def _free(self, request: Request) -> None:
        assert request.place is not None
        self._running.remove(request)
        self.store.slots.give_back([request.place.slot])
        self.store.pages.give_back(request.place.pages)
        request.place = None

    def _end(self, request: Request) -> None:
        if request.state is State.RUNNING:
            self._free(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        request.state = State.ENDED
        self.counts.ended += 1


def default_cache_dtype(model: Transformer) -> CacheDtype:
    """Rows as the model computes them."""
    if model.numerics.simulate:
        return "release"
    return "bf16" if model.numerics.activations == torch.bfloat16 else "fp32"
