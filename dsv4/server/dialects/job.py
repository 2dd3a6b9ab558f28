"""Generates one answer, for every dialect: from a `GenerationRequest` to steps, counts and a log line."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from dsv4.answer import AnswerInProgress, AnswerStep, PlainAnswer
from dsv4.generation import (
    BusyError,
    ConstraintFactory,
    ContextLengthError,
    FinishReason,
    PromptProgress,
    RequestOptions,
    SamplingParams,
    TokenEvent,
)
from dsv4.server.accounts.ledger import Usage
from dsv4.server.backend import Backend
from dsv4.server.backend.active import ActiveAnswer
from dsv4.server.backend.models import check_model
from dsv4.server.dialects.constraints import constraint
from dsv4.server.dialects.places import Places
from dsv4.server.dialects.prompt import begun, cache_points, encode
from dsv4.server.dialects.request import GenerationRequest
from dsv4.server.dialects.spans import AnswerSpans
from dsv4.server.guard.sizes import check_fits
from dsv4.server.wire.errors import ApiError, ContextOverflow, busy

# how long a stream waits for a refusal of the engine before it sends its status line
PATIENCE_SECONDS = 0.5
# the official service's value while it thinks, if there are tools
TOP_P_WITH_TOOLS = 0.95
FIXED_WHILE_THINKING = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty")
ENGINE_ERROR = "engine_error"
FIELDS_OF_CLIENTS = {*FIXED_WHILE_THINKING, "max_tokens", "logit_bias", "seed"}


@dataclass(frozen=True, slots=True)
class Charge:
    """What a request counts against the limits of its key: all its answers and the tokens of all its prompts. field:
    the one that asks for several answers."""

    answers: int
    prompt_tokens: int
    field: str = "n"


@dataclass(slots=True)
class AnswerJob:
    """The generation of one answer. Call `steps` once, optionally after `begin`, and `close` in every case.

    `answer` and the counts grow while it runs. reused: prompt tokens from the prefix cache; progress: of the prompt;
    drafted, accepted: tokens of the answer that had a draft, and those whose draft was right.
    charge: what the job counts for its request; None = another job of the request does.
    repeats: another job has the same prompt and accounts for it.
    spans: record it for OpenTelemetry, None = nothing does.
    places: where the jobs of one request wait for a queue that is full; None = a full queue refuses the answer.
    """

    backend: Backend
    request: GenerationRequest
    prompt: list[int]
    params: SamplingParams
    options: RequestOptions
    answer: AnswerInProgress
    charge: Charge | None = None
    repeats: bool = False
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created: int = field(default_factory=lambda: int(time.time()))
    reused: int = 0
    progress: PromptProgress | None = None
    drafted: int = 0
    accepted: int = 0
    tokens: list[int] = field(default_factory=list)
    call_ids: list[str] = field(default_factory=list)
    spans: AnswerSpans | None = None
    places: Places | None = None
    _began: float = field(default_factory=time.perf_counter)
    _first_token: float | None = None
    _counted: int = 0  # tokens of the prompt that are reused or in the rates
    _said_end: bool = False  # the last token is an end token of the model
    _refused: bool = False
    _failed: bool = False
    _number: int = 0  # among the jobs of `places`
    _queued: bool = False  # the engine has said something: it does not refuse any more
    _entered: int = 0  # answers beside this one that count as requests of the key
    _events: AsyncIterator[TokenEvent] | None = None
    _next: "asyncio.Future[TokenEvent | None] | None" = None

    def call_id(self, index: int, prefix: str = "call") -> str:
        """The id of call number `index`: letters and digits only, because some clients remove other characters."""
        while len(self.call_ids) <= index:
            self.call_ids.append(f"{prefix}{len(self.call_ids):02d}{uuid.uuid4().hex[:24]}")
        return self.call_ids[index]

    async def begin(self, patience: float = PATIENCE_SECONDS) -> None:
        """Start, and wait up to `patience` seconds for a refusal of the engine, which can only have a status of its own
        before a stream begins.

        Raises ApiError: 400 or 429 if the engine refuses.
        """
        try:
            waiting = self._next = asyncio.ensure_future(_anext(self.started()))
            await asyncio.wait({waiting}, timeout=patience)
            if waiting.done() and isinstance(error := waiting.exception(), ValueError | BusyError):
                raise self._refusal(error)
        except BaseException:
            await self.close()
            raise

    async def steps(self) -> AsyncGenerator[AnswerStep, None]:
        """The steps of the answer until it is over. Closes the generator's stream in every case.

        Raises ApiError: 400 or 429 if the engine refuses the request, 500 if it fails or gives no reason for the end.
        """
        try:
            self.started()
            if self.places is not None:
                self._number = self.places.asks()
            while (event := await self._take()) is not None:
                if event.finish is FinishReason.ERROR:
                    self._failed = True
                    raise ApiError(500, event.error or "the engine failed", code=ENGINE_ERROR)
                yield self._step(event)
                if self.answer.over:
                    self._finish()
                    return
        finally:
            await self.close()
        raise ApiError(500, "the engine ended the answer without a reason", code=ENGINE_ERROR)

    async def collect(self) -> None:
        """Run to the end. Raises the errors of `steps`."""
        async with aclosing(self.steps()) as steps:
            async for _ in steps:
                pass

    def started(self) -> AsyncIterator[TokenEvent]:
        """The events of the engine, which begins its work with the first call. Raises ApiError 429, and 400 for more
        answers than the key may have."""
        if self._events is not None:
            return self._events
        if self.charge is not None:
            limits, key, more = self.backend.admission.limits, self.request.key, self.charge.answers - 1
            if more:
                limits.enter_more(key, more, self.charge.field)
                self._entered = more
            limits.admit(key, self.charge.prompt_tokens)
        self.backend.running += 1
        return self._open()

    def _open(self) -> AsyncIterator[TokenEvent]:
        self.backend.active[self.id] = self.active
        options = replace(self.options, label=self.id)
        self._events = self.backend.generator.stream(self.prompt, self.params, options)
        return self._events

    def another(self, number: int) -> "AnswerJob":
        """A job for one more answer to the same prompt. With a seed it has the seed `number` later, so that the
        answers differ."""
        seed = self.params.seed
        params = self.params if seed is None else replace(self.params, seed=seed + number)
        answer = new_answer(self.backend, self.request)
        return AnswerJob(self.backend, self.request, self.prompt, params, self.options, answer, repeats=True)

    async def close(self) -> None:
        """Stop the generation. A second call does nothing."""
        limits, key = self.backend.admission.limits, self.request.key
        if self._entered:
            limits.leave(key, self._entered)
            self._entered = 0
        if self.spans is not None:
            spans, self.spans = self.spans, None
            spans.end(self, self._fault)
        if self._events is None:
            return
        events, waiting, self._events, self._next = self._events, self._next, None, None
        self.backend.running -= 1
        self.backend.active.pop(self.id, None)
        limits.spend(key, self.answer.completion_tokens)
        if not self._refused and not self._failed:
            self._account()
        if not self.answer.over and not self._refused:
            self.backend.metrics.finished["error" if self._failed else "abort"] += 1
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        # the protocol promises an iterator; only a generator can be closed
        if isinstance(events, AsyncGenerator):
            await events.aclose()

    def report(self) -> dict[str, Any]:
        """The fields of this answer for the log line of its request."""
        return {
            "id": self.id,
            "model": self.request.model,
            "prompt_tokens": len(self.prompt),
            "cached_tokens": self.reused,
            "completion_tokens": self.answer.completion_tokens,
            "finish": self.answer.finish_reason if self.answer.over else None,
            "cost_usd": round(self.cost, 9),
            "first_token_seconds": None if (first := self.first_token_seconds) is None else round(first, 4),
        }

    def active(self) -> ActiveAnswer:
        """How far the answer is."""
        return ActiveAnswer(
            id=self.id,
            key=self.request.key,
            model=self.request.model,
            prompt=len(self.prompt),
            done=self._counted,
            reused=self.reused,
            generated=len(self.tokens),
            limit=self.params.max_tokens,
            seconds=self.seconds,
            first_token_seconds=self.first_token_seconds,
        )

    @property
    def seconds(self) -> float:
        """The time since the request was accepted."""
        return time.perf_counter() - self._began

    @property
    def first_token_seconds(self) -> float | None:
        """How long the first token took, waiting included; None before it."""
        return None if self._first_token is None else self._first_token - self._began

    @property
    def cost(self) -> float:
        """The cost of the answer so far at the server's prices, in US dollars."""
        (prompt, hit), output = self._counted_prompt, self.answer.completion_tokens
        at = datetime.fromtimestamp(self.created, UTC)
        prices, miss = self.backend.settings.prices, prompt - hit
        return prices.cost(self.backend.model_name, hit=hit, miss=miss, output=output, at=at, asked=self.request.model)

    def _account(self) -> None:
        """Record the usage once, when the generation is over, also if the client disconnected."""
        self.backend.metrics.cost += self.cost
        if self.backend.ledger is None:
            return
        day, answer = datetime.fromtimestamp(self.created, UTC).date().isoformat(), self.answer
        counts = (*self._counted_prompt, answer.completion_tokens, answer.reasoning_tokens)
        requests = 0 if self.charge is None else 1
        self.backend.ledger.add(Usage(day, self.request.key, self.request.model, requests, *counts, self.cost))

    @property
    def _counted_prompt(self) -> tuple[int, int]:
        """The tokens of the prompt that this job accounts for, and the cached ones among them."""
        return (0, 0) if self.repeats else (len(self.prompt), self.reused)

    @property
    def _fault(self) -> str | None:
        """Why the answer did not finish, None if it did."""
        if self._refused or self._events is None:  # by the engine, or by a limit of the key
            return "refused"
        if self._failed:
            return ENGINE_ERROR
        return None if self.answer.over else "abort"

    async def _take(self) -> TokenEvent | None:
        while self._events is not None:
            waiting, self._next = self._next, None
            try:
                event = await (waiting if waiting is not None else anext(self._events, None))
            except (ValueError, BusyError) as error:
                if self.tokens:
                    raise
                # the engine refused the request before the first token
                refusal = self._refusal(error)
                if not isinstance(error, BusyError) or not await self._place():
                    raise refusal from error
                continue
            if not self._queued:
                self._queued = True
                if self.places is not None:
                    self.places.taken()
            return event
        return None

    async def _place(self) -> bool:
        """Wait for a place in the queue, and ask the engine again. False if there will be none."""
        if self.places is None or self._queued:
            return False
        self.backend.active.pop(self.id, None)  # nothing runs that could be cancelled
        if not await self.places.refused(self._number):
            return False
        self._refused = False
        self._open()
        return True

    def _refusal(self, error: Exception) -> ApiError:
        self._refused = True
        match error:
            case BusyError():
                return busy(str(error))
            case ContextLengthError():
                return ContextOverflow(error.prompt_tokens, self.params.max_tokens, error.context_length)
            case _:
                return _wrong_field(error)

    def _step(self, event: TokenEvent) -> AnswerStep:
        if event.progress is not None:
            self.progress = event.progress
            self.reused = event.progress.reused
            self._count(event.progress.done)
        if event.reused is not None:
            self.reused = event.reused
        if event.token is not None:
            if self._counted < len(self.prompt):
                self._count(len(self.prompt))
            self.backend.rates.add(generated=1)
            self.tokens.append(event.token)
            if event.draft is not None:
                self.drafted += 1
                self.accepted += event.draft == event.token
            self._first_token = self._first_token or time.perf_counter()
            self._said_end = event.finish is FinishReason.STOP
        try:
            step = self.answer.step(event)
        except ValueError as error:
            # a model may have more rows than its tokenizer has tokens, and may sample one of these rows
            raise ApiError(
                500, f"the model wrote what its tokenizer cannot read: {error}", code=ENGINE_ERROR
            ) from error
        if self.spans is not None:
            self.spans.saw(self, event, step)
        return step

    def _count(self, done: int) -> None:
        """So many tokens of the prompt are in the cache: those that were computed since the last call are counted."""
        fresh = done - max(self._counted, self.reused)
        if fresh > 0:
            self.backend.rates.add(prompt=fresh)
        self._counted = max(done, self._counted)

    def _finish(self) -> None:
        metrics, now = self.backend.metrics, time.perf_counter()
        metrics.finished[self.answer.finish_reason] += 1
        prompt, cached = self._counted_prompt
        metrics.prompt_tokens += prompt
        metrics.cached_tokens += cached
        metrics.generation_tokens += len(self.tokens)
        metrics.whole.add(now - self._began)
        if self._first_token is not None:
            metrics.first_token.add(self._first_token - self._began)
            if len(self.tokens) > 1:
                metrics.per_token.add((now - self._first_token) / (len(self.tokens) - 1))
        self._keep()

    def _keep(self) -> None:
        """Keep the turn for later prompts, if the client received all of it."""
        tokenizer, request = self.backend.tokenizer, self.request
        if not self._said_end or request.continued or request.raw is not None:
            return
        if self.answer.parsed.broken:
            return  # the client received its markup as text
        if not request.tools and tokenizer.token_id(tokenizer.dialect.dsml) in self.tokens:
            return  # its calls were dropped
        parsed = self.answer.parsed
        ids = [self.call_id(index) for index in range(len(parsed.tool_calls))]
        # in later prompts the opening of the calls is a part of the turn
        opening = tokenizer.encode_text(begun(request, tokenizer.dialect), trusted=True)
        prompt = self.prompt[: len(self.prompt) - len(opening)]
        # another end token of the model stands in no prompt
        turn = [*opening, *self.tokens[:-1], tokenizer.eos_id]
        self.backend.replays.keep(request.owner, prompt, turn, parsed, ids)


def prepare(backend: Backend, request: GenerationRequest) -> AnswerJob:
    """Encode the prompt and choose the sampling. A long conversation or a large grammar takes seconds: do not call it
    in an event loop. Raises ApiError."""
    check_model(request.model, backend.model_name, any_name=backend.settings.any_model)
    # the prompt certainly holds the contents; it may leave out reasoning
    contents = [message.get("content") for message in request.messages]
    check_fits(contents, backend.tokenizer.longest_token, backend.generator.context_length)
    prompt, points, grammar = _work_out(backend, request)
    params = sampling(backend, request, prompt, grammar)
    options = RequestOptions(owner=request.owner, cache_points=points, progress=True)
    charge = Charge(request.answers, len(prompt))
    return AnswerJob(backend, request, prompt, params, options, new_answer(backend, request), charge)


def prepare_all(backend: Backend, request: GenerationRequest) -> list[AnswerJob]:
    """As `prepare`, a job for each answer that the client wants."""
    first = prepare(backend, request)
    return [first, *(first.another(number) for number in range(1, request.answers))]


def as_one(jobs: Sequence[AnswerJob], field: str) -> list[AnswerJob]:
    """The jobs of several prompts of one request, the first of which counts for all. field: as of `Charge`."""
    prompts = sum(len(job.prompt) for job in jobs if not job.repeats)
    for job in jobs:
        job.charge = None
    jobs[0].charge = Charge(len(jobs), prompts, field)
    return [*jobs]


def new_answer(backend: Backend, request: GenerationRequest) -> AnswerInProgress:
    """An answer to `request` that has not begun."""
    if request.plain:
        return PlainAnswer(backend.tokenizer)
    return AnswerInProgress(
        backend.tokenizer,
        thinking=request.opens_thinking,
        stops=request.stop,
        tools=request.tools,
        functions=request.callable,
        single=not request.parallel,
        begun=begun(request, backend.tokenizer.dialect),
        continued=request.continued or request.raw is not None,
    )


def _work_out(
    backend: Backend, request: GenerationRequest
) -> tuple[list[int], tuple[int, ...], ConstraintFactory | None]:
    if request.raw is not None:
        # further answers to this prompt begin at its end
        return [*request.raw], (len(request.raw) - 1,) if request.answers > 1 else (), None
    prompt = encode(request, backend.tokenizer, backend.replays)
    return prompt, cache_points(prompt, backend.tokenizer), _constraint(backend, request)


def _constraint(backend: Backend, request: GenerationRequest) -> ConstraintFactory | None:
    return constraint(backend, request, guarded=not backend.settings.free_calls)


def sampling(
    backend: Backend, request: GenerationRequest, prompt: list[int], grammar: ConstraintFactory | None
) -> SamplingParams:
    """The sampling parameters; the limit is reduced to the room in the context. Raises ApiError 400 if there is no
    room."""
    context = backend.generator.context_length
    room = context - len(prompt)
    if room < 1:
        raise ContextOverflow(len(prompt), request.limit or 1, context)
    fields: dict[str, Any] = {"temperature": backend.defaults.temperature, "top_p": backend.defaults.top_p}
    fixed = FIXED_WHILE_THINKING if request.thinking and not backend.settings.free_sampling else ()
    if request.thinking and request.shown:
        fields["top_p"] = min(fields["top_p"], TOP_P_WITH_TOOLS)
    fields |= {name: value for name, value in request.sampling.items() if value is not None and name not in fixed}
    try:
        return SamplingParams(
            max_tokens=min(request.limit or request.default_tokens, room),
            stop_ids=(backend.tokenizer.eos_id,),
            ignore_eos=request.ignore_eos,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs,
            constraint=grammar,
            **fields,
        )
    except ValueError as error:
        raise _wrong_field(error) from error


def _wrong_field(error: Exception) -> ApiError:
    """The 400 of a message of `SamplingParams`, or of the engine about it, which begins with the field's name."""
    name = str(error).partition(" ")[0]
    return ApiError(400, str(error), param=name if name in FIELDS_OF_CLIENTS else None)


async def _anext(events: AsyncIterator[TokenEvent]) -> TokenEvent | None:
    return await anext(events, None)
