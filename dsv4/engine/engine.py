"""The engine: admits requests, runs one packed step at a time, samples, frees. Single-threaded and synchronous.

T tokens of a step, S streams, D hidden size, V vocabulary, B sequences.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from dsv4.cache import CacheStore, OutOfCacheError, StepCache
from dsv4.engine.request import Request, State
from dsv4.engine.sampler import logprobs_of, sample
from dsv4.engine.scheduler import Part, plan
from dsv4.generation import FinishReason, SamplingParams, TokenEvent
from dsv4.model.transformer import Transformer

Emitted = tuple[Request, TokenEvent]


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Raises ValueError for an empty prompt or a token id outside the vocabulary."""
    if not tokens:
        raise ValueError("the prompt is empty")
    bad = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if bad is not None:
        raise ValueError(f"prompt token ids must be in [0, {vocabulary}), got {bad}")


class Engine:
    """Continuous batching over a paged cache.

    context_length: largest prompt plus completion. cache_tokens: source tokens of all running sequences together
    (default: a full context each; memory is committed only as it is written). sequences: how many run at once.
    step_tokens: token budget of one step; longer prompts are prefilled in chunks between the others' tokens.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        context_length: int,
        cache_tokens: int | None = None,
        sequences: int = 8,
        step_tokens: int = 512,
    ) -> None:
        if not 1 <= context_length <= model.config.max_position_embeddings:
            raise ValueError(
                f"context_length must be in [1, {model.config.max_position_embeddings}], got {context_length}"
            )
        for name, value in (("sequences", sequences), ("step_tokens", step_tokens)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.model, self.context_length, self.step_tokens = model, context_length, step_tokens
        self.eos = model.config.eos_token_id
        self.store = CacheStore(
            model.config,
            model.numerics.activations,
            tokens=max(cache_tokens or sequences * context_length, context_length),
            sequences=sequences,
        )
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._inboxes: dict[Request, deque[TokenEvent]] = {}
        self._next = 0

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def submit(self, prompt: Sequence[int], params: SamplingParams) -> Request:
        """Queue a request. Raises ValueError for an empty prompt, an id outside the vocabulary, or a prompt that
        leaves no room in the context; `max_tokens` is cut to what fits."""
        check_tokens(prompt, self.model.config.vocab_size)
        room = self.context_length - len(prompt)
        if room < 1:
            raise ValueError(f"the prompt has {len(prompt)} tokens, the context holds {self.context_length}")
        if params.max_tokens > room:
            params = replace(params, max_tokens=room)
        request = Request.new(self._next, list(prompt), params)
        self._next += 1
        self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Stop a request now and free its place. Does nothing when it has ended."""
        if request.state is not State.ENDED:
            self._end(request)

    @torch.inference_mode()
    def step(self) -> list[Emitted]:
        """Run one step; returns one event per request that got a token."""
        self._admit()
        parts = plan(self._running, self.step_tokens)
        if not parts:
            return []
        logits_BV = self._forward(parts)
        finished = [part for part in parts if part.request.uncached == 0]
        return [self._emit(part.request, logits_BV[i]) for i, part in enumerate(finished)]

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[TokenEvent]:
        """Run one request to its end in this thread; several iterators may be open at once. Closing one cancels it."""
        request = self.submit(prompt, params)
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

    def _admit(self) -> None:
        """In order of arrival, while a slot and all pages a request may need are free: running requests never
        run out of memory."""
        while self._waiting:
            request = self._waiting[0]
            try:
                slot = self.store.slots.take(1)
            except OutOfCacheError:
                return
            try:
                request.pages = self.store.pages.take(self.store.spec.pages_for(request.most_tokens))
            except OutOfCacheError:
                self.store.slots.give_back(slot)
                return
            request.slot, request.state = slot[0], State.RUNNING
            self._running.append(self._waiting.pop(0))

    def _forward(self, parts: list[Part]) -> torch.Tensor:
        """Feed the parts through the model; logits of the requests whose tokens are now all cached, in order."""
        tokens, lengths, cached, slots, pages, wanted = [], [], [], [], [], []
        for part in parts:
            request = part.request
            assert request.slot is not None
            tokens += request.tokens[request.cached : request.cached + part.count]
            lengths.append(part.count)
            cached.append(request.cached)
            slots.append(request.slot)
            pages.append(request.pages)
            if part.count == request.uncached:
                wanted.append(len(tokens) - 1)
        sequences = self.model.pack(lengths, cached)
        cache = StepCache(self.store, sequences, slots, pages)
        x_TSD = self.model.hidden(torch.tensor(tokens), sequences, cache)
        for part in parts:
            part.request.cached += part.count
        return self.model.logits(x_TSD[torch.tensor(wanted, dtype=torch.int64)])

    def _emit(self, request: Request, logits_V: torch.Tensor) -> Emitted:
        params = request.params
        token = sample(logits_V, params, request.generator)
        scores = logprobs_of(logits_V, token, params.top_logprobs) if params.logprobs else None
        request.tokens.append(token)
        finish = None
        if token == self.eos or token in params.stop_ids:
            finish = FinishReason.STOP
        elif request.generated >= params.max_tokens:
            finish = FinishReason.LENGTH
        if finish is not None:
            self._end(request)
        return request, TokenEvent(token, finish, scores)

    def _end(self, request: Request) -> None:
        if request.state is State.RUNNING:
            assert request.slot is not None
            self._running.remove(request)
            self.store.slots.give_back([request.slot])
            self.store.pages.give_back(request.pages)
            request.slot, request.pages = None, []
        elif request in self._waiting:
            self._waiting.remove(request)
        request.state = State.ENDED
