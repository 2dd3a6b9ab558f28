"""A generator without a model: it plays a script of tokens and remembers what it was asked."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from dsv4.generation import (
    ContextLengthError,
    EngineReport,
    FinishReason,
    PoolReport,
    PrefixReport,
    PromptProgress,
    RequestOptions,
    RequestReport,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
    TokenTrace,
)

PAGES, SLOTS, PAGE_TOKENS, EXPERTS = 64, 8, 256, 8
Script = Sequence[int] | Callable[[Sequence[int], SamplingParams], Sequence[int]]


@dataclass(slots=True)
class StubCall:
    """One call of `stream`: what was asked, how many events went out, whether it was closed early."""

    prompt: list[int]
    params: SamplingParams
    options: RequestOptions
    emitted: int = 0
    ended: bool = False
    closed_early: bool = False


class StubGenerator:
    """Implements TokenGenerator: emits `script`, or what it returns for a prompt, token by token.

    A token of `params.stop_ids` ends the answer (stop), `params.max_tokens` and the context cut it (length),
    and so does a script that ends without a stop token (stop, with no token). `delay` are seconds before each
    event. With `error` the script is followed by a failure of that name. `reused`: prompt tokens it claims to have had.
    `progress`: what it tells of a prompt before the first token, where that is asked for. It reports a small cache that
    its calls fill, and traces choices that follow from positions alone.

    >>> StubGenerator([5, 6, 1]).calls
    []
    """

    def __init__(
        self,
        script: Script,
        context_length: int = 4096,
        delay: float = 0.0,
        *,
        error: str | None = None,
        reused: int = 0,
        progress: Sequence[PromptProgress] = (),
    ) -> None:
        self._script = script
        self._context_length = context_length
        self._delay = delay
        self._error = error
        self._reused = reused
        self._progress = tuple(progress)
        self.calls: list[StubCall] = []

    @property
    def context_length(self) -> int:
        """The largest prompt plus completion in tokens."""
        return self._context_length

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        """Play the script once. Raises ContextLengthError for a prompt that fills the context."""
        if len(prompt) >= self._context_length:
            raise ContextLengthError(len(prompt), self._context_length)
        call = StubCall(list(prompt), params, options or RequestOptions())
        self.calls.append(call)
        try:
            told = self._progress if call.options.progress else ()
            for event in [*(TokenEvent(None, progress=step) for step in told), *self._events(call)]:
                # also without a delay others get their turn, as with a real engine
                await asyncio.sleep(self._delay)
                call.emitted += 1
                call.ended = event.finish is not None
                yield event
        finally:
            call.closed_early = not call.ended

    async def report(self) -> EngineReport:
        """Calls that go on as running requests, the prompts of the last ones that ended as kept prefixes."""
        running = [call for call in self.calls if not (call.ended or call.closed_early)][:SLOTS]
        kept = [call for call in self.calls if call.ended][-SLOTS:]
        requests = tuple(_request_report(call, self._reused) for call in running)
        prefixes = tuple(
            PrefixReport(call.options.owner, len(call.prompt), _pages(len(call.prompt)), True, None) for call in kept
        )
        busy, held = sum(request.pages for request in requests), sum(prefix.pages for prefix in prefixes)
        tokens = sum(call.emitted for call in self.calls)
        return EngineReport(
            requests=requests,
            prefixes=prefixes,
            pages=PoolReport(PAGES, max(0, PAGES - busy - held), busy, held, 1 << 16),
            slots=PoolReport(2 * SLOTS, 2 * SLOTS - len(running) - len(kept), len(running), len(kept), 1 << 15),
            page_tokens=PAGE_TOKENS,
            cache_bytes={"window": 1 << 19, "csa_entries": 3 << 20, "hca_entries": 1 << 18, "indexer_keys": 1 << 19},
            experts={layer: [tokens * (1 + (e + layer) % 3) for e in range(EXPERTS)] for layer in range(4)},
            steps="played from a script",
            speculates=False,
        )

    def _events(self, call: StubCall) -> list[TokenEvent]:
        params = call.params
        script = self._script(call.prompt, params) if callable(self._script) else self._script
        limit = min(params.max_tokens, self._context_length - len(call.prompt))
        events: list[TokenEvent] = []
        for token in script:
            finish = None
            if token in params.stop_ids:
                finish = FinishReason.STOP
            elif len(events) + 1 == limit:
                finish = FinishReason.LENGTH
            reused = None if events else self._reused
            trace = _trace(len(call.prompt), len(events)) if params.trace else None
            events.append(TokenEvent(token, finish, _logprobs(token, params), reused=reused, trace=trace))
            if finish is not None:
                return events
        if self._error is not None:
            return [*events, TokenEvent(None, FinishReason.ERROR, error=self._error)]
        return [*events, TokenEvent(None, FinishReason.STOP)]


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE_TOKENS)


def _request_report(call: StubCall, reused: int) -> RequestReport:
    held = len(call.prompt) + call.emitted
    options = call.options
    return RequestReport(
        options.label, options.owner, True, options.priority, len(call.prompt), held, reused, call.emitted,
        call.params.max_tokens, 0, _pages(held),
    )  # fmt: skip


def _trace(prompt: int, generated: int) -> TokenTrace:
    """Of the positions before one token of the answer: two experts in each of two layers, and all entries but every
    third in the second."""
    positions = range(prompt) if not generated else range(prompt + generated - 1, prompt + generated)
    return TokenTrace(
        first=positions.start,
        experts={layer: [[(p + layer) % EXPERTS, (p + layer + 3) % EXPERTS] for p in positions] for layer in (0, 1)},
        entries={1: [[entry for entry in range((p + 1) // 4) if entry % 3] for p in positions]},
        kept=[None] * len(positions),
    )


def _logprobs(token: int, params: SamplingParams) -> TokenLogprobs | None:
    if not params.logprobs:
        return None
    chosen = -0.125 * (1 + token % 8)
    others = [other for other in range(params.top_logprobs + 1) if other != token]
    top = [(token, chosen), *((other, chosen - rank) for rank, other in enumerate(others, start=1))]
    return TokenLogprobs(chosen, tuple(top[: params.top_logprobs]))
