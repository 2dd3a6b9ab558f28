"""`RemoteGenerator`: a `TokenGenerator` over one or more vLLM or SGLang servers of the same model."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from dsv4.backends.grammar_check import GrammarCheck
from dsv4.backends.http import ServerLostError
from dsv4.backends.protocol import RefusedError, ServerRequest
from dsv4.backends.replica import Replica
from dsv4.backends.routing import PrefixRouter, prefix_keys
from dsv4.backends.stages import stages_of
from dsv4.generation import (
    BusyError,
    ConstraintStage,
    ContextLengthError,
    FinishReason,
    RequestOptions,
    SamplingParams,
    TokenEvent,
    WrittenGrammar,
)
from dsv4.observe import log

# tries of a request of which nothing was sent, and seconds before the second; each further wait is twice as long
TRIES, FIRST_PAUSE = 3, 0.2
BUSY = (408, 429, 503)
WRONG = (400, 413, 422)
# what another try cannot help: keys and names that the operator has to set right
NOT_OURS = (401, 403, 404, 405)


@dataclass(slots=True)
class _Answer:
    """One answer as it grows. said: its tokens."""

    prompt: list[int]
    params: SamplingParams
    options: RequestOptions
    ends: float | None  # in the time of the event loop
    said: list[int] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.params.max_tokens - len(self.said)

    def request(self, stage: ConstraintStage, number: int) -> ServerRequest:
        """The request for one part."""
        label = self.options.label and (self.options.label if number == 0 else f"{self.options.label}-{number}")
        seed = self.params.seed
        return ServerRequest(
            [*self.prompt, *self.said],
            self.params,
            replace(self.options, label=label),
            self.left if stage.most is None else min(self.left, stage.most),
            self.params.stop_ids if stage.until is None else (*self.params.stop_ids, stage.until),
            stage.banned,
            stage.grammar,
            # further parts have other random numbers than the first
            None if seed is None else seed + number,
        )


class RemoteGenerator:
    """Answers come from `replicas`, which serve the same model. context_length: the shortest of theirs. end_ids: tokens
    of the model that end every answer, beside those of a request.

    A request goes to the least loaded server, or to the one that has seen its beginning unless it is clearly busier.
    Where nothing was sent to the user yet, a failed request is tried again, on another server if there is one. A server
    that dies in the middle of an answer ends that answer with an error. Use it in one event loop.
    """

    def __init__(self, replicas: Sequence[Replica], context_length: int, end_ids: Sequence[int] = ()) -> None:
        if not replicas:
            raise ValueError("replicas: at least one is needed")
        self._replicas, self._context_length = tuple(replicas), context_length
        self._end_ids = tuple(end_ids)
        self._router, self._counts = PrefixRouter(), Counter[str]()
        self._reviving: asyncio.Task[None] | None = None

    @property
    def context_length(self) -> int:
        """As in TokenGenerator."""
        return self._context_length

    @property
    def failing(self) -> str | None:
        """The reason why no server can answer at present, None if one can."""
        if any(replica.problem is None for replica in self._replicas):
            return None
        return "; ".join(f"{replica.name}: lost" for replica in self._replicas)

    def counters(self) -> dict[str, float]:
        """The numbers of the metrics page: of this process alone, since its start."""
        names = ("requests", "retries", "lost", "busy")
        return {f"remote_{name}_total": float(self._counts[name]) for name in names} | {
            "remote_engines": len(self._replicas),
            "remote_engines_lost": sum(replica.problem is not None for replica in self._replicas),
            "running": sum(replica.running for replica in self._replicas),
        }

    def close(self) -> None:
        """Close idle connections."""
        for replica in self._replicas:
            replica.client.close()

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        """As in TokenGenerator. Raises ValueError naming a field that the servers cannot do. The failure of a server is
        an event with `finish` ERROR."""
        options = options or RequestOptions()
        if len(prompt) >= self._context_length:
            raise ContextLengthError(len(prompt), self._context_length)
        stages = stages_of(params.constraint, params.stop_ids, self._end_ids)
        written = [stage.grammar for stage in stages if stage.grammar is not None]
        grammars = [grammar.source() for grammar in written if isinstance(grammar, WrittenGrammar)]
        # servers of one kind may be started with other flags; a later part must not be refused when tokens were sent
        for replica in self._replicas:
            replica.protocol.check(params, options, grammars)
        if params.logprobs and any(stage.most is not None for stage in stages):
            raise ValueError("logprobs: not together with a thinking budget: the engine does not score a forced token")
        ends = None if options.deadline is None else asyncio.get_running_loop().time() + options.deadline
        limit = min(params.max_tokens, self._context_length - len(prompt))
        stops = tuple(dict.fromkeys((*params.stop_ids, *self._end_ids)))
        params = replace(params, max_tokens=limit, stop_ids=stops).without_ends(())
        answer = _Answer(list(prompt), params, options, ends)
        self._counts["requests"] += 1
        self._watch_lost()
        try:
            for number, stage in enumerate(stages):
                async with aclosing(self._stage(answer, stage, number)) as events:
                    async for event in events:
                        yield event
                        if event.finish is not None:
                            return
        except TimeoutError:
            yield TokenEvent(None, FinishReason.ABORT, error="the deadline has passed")
        except (ServerLostError, RefusedError) as error:
            log("engine_failed", error=str(error), label=options.label, tokens=len(answer.said))
            yield TokenEvent(None, FinishReason.ERROR, error=_user_message(error, bool(answer.said)))

    async def _stage(self, answer: _Answer, stage: ConstraintStage, number: int) -> AsyncGenerator[TokenEvent, None]:
        """The events of one part. An event with `finish` ends the answer; without one the next part follows."""
        check, before, last = GrammarCheck(stage), len(answer.said), None
        if stage.most is None or stage.most > 0:
            async with aclosing(self._part(answer, stage, number)) as events:
                async for event in events:
                    if event.token is not None and (problem := check.refuses(event.token)) is not None:
                        yield TokenEvent(None, FinishReason.ERROR, error=problem)
                        return
                    answer.said += [event.token] if event.token is not None else []
                    last = event if number == 0 else replace(event, reused=None)  # that of the first part counts
                    if last.finish is None:
                        yield last
        if last is not None and last.finish is FinishReason.STOP and last.token is None:
            problem = check.cut(answer.params.stop_ids)
            last = last if problem is None else TokenEvent(None, FinishReason.ERROR, error=problem)
        reached = stage.most is not None and len(answer.said) - before >= stage.most
        if last is not None and last.finish is not None:
            last = _in_whole(last, answer, stage, reached=reached)
            yield last
            if last.finish is not None or last.token == stage.until:
                return
        if stage.until is not None:
            answer.said.append(stage.until)
            yield TokenEvent(stage.until, None if answer.left else FinishReason.LENGTH)

    async def _part(self, answer: _Answer, stage: ConstraintStage, number: int) -> AsyncGenerator[TokenEvent, None]:
        """The events of one request, tried again until its first event. Raises BusyError, ValueError, TimeoutError, and
        the error of the last try."""
        request = answer.request(stage, number)
        keys = prefix_keys(request.prompt, answer.options.cache_points, answer.options.owner)
        tried: set[int] = set()
        for remaining in reversed(range(TRIES)):
            replica = await self._chosen(keys, tried)
            begun = False
            try:
                async with aclosing(replica.events(request)) as events:
                    while (event := await _within(answer.ends, events)) is not None:
                        if not begun:
                            self._router.remember(keys, replica.number)
                        begun = True
                        yield event
                return
            except (ServerLostError, RefusedError) as failure:
                self._judge(replica, await replica.meaning(failure), begun=begun, last=not remaining)
            tried.add(replica.number)
            self._counts["retries"] += 1
            request = request.once_more(TRIES - remaining)
            if len(tried) >= len(self._replicas):
                await asyncio.sleep(FIRST_PAUSE * 2 ** (TRIES - 1 - remaining))

    def _judge(self, replica: Replica, error: ServerLostError | RefusedError, *, begun: bool, last: bool) -> None:
        """Raise what a failed request means for the answer, or return for another try."""
        if isinstance(error, ServerLostError):
            if replica.lost(error):
                self._watch(replica, error)
            if begun or last:
                raise error
            return
        if error.status in WRONG and not begun:
            raise ValueError(str(error)) from error
        if begun or error.status in NOT_OURS:
            raise error
        if error.status in BUSY:
            self._counts["busy"] += 1
            if last:
                raise BusyError(sum(replica.running for replica in self._replicas)) from error
        elif last:
            raise error

    async def _chosen(self, keys: Sequence[bytes], tried: set[int]) -> Replica:
        """The server for a request: one that lives and was not tried, else one that lives, else one that lives again.
        If there is none it is the first: that try fails, and the next one looks again."""
        alive = [replica.running if replica.problem is None else None for replica in self._replicas]
        fresh = [None if number in tried else load for number, load in enumerate(alive)]
        number = self._router.choose(keys, fresh)
        if number is None:
            number = self._router.choose(keys, alive)
        if number is None:
            looks = await asyncio.gather(*(replica.look() for replica in self._replicas))
            number = next((place for place, lives in enumerate(looks) if lives), 0)
        return self._replicas[number]

    def _watch(self, replica: Replica, error: ServerLostError) -> None:
        self._counts["lost"] += 1
        log("engine_lost", engine=replica.client.url, error=str(error))
        self._watch_lost()

    def _watch_lost(self) -> None:
        """Look at lost servers from time to time, until all live."""
        if all(replica.problem is None for replica in self._replicas):
            return
        loop = asyncio.get_running_loop()
        if self._reviving is None or self._reviving.done() or self._reviving.get_loop() is not loop:
            self._reviving = loop.create_task(self._revive())

    async def _revive(self) -> None:
        while lost := [replica for replica in self._replicas if replica.problem is not None]:
            soonest = min(lost, key=lambda replica: replica.next_look)
            await asyncio.sleep(max(0.05, soonest.next_look - time.monotonic()))
            if soonest.problem is not None and await soonest.look():
                log("engine_back", engine=soonest.client.url)


def _in_whole(event: TokenEvent, answer: _Answer, stage: ConstraintStage, *, reached: bool) -> TokenEvent:
    """The event that ended a request, as one of the whole answer: without `finish` where the answer goes on. reached:
    whether the part has as many tokens as it may."""
    if event.finish is FinishReason.LENGTH and reached and answer.left:
        return replace(event, finish=None)
    ended = event.finish is FinishReason.STOP and event.token is not None and event.token == stage.until
    if ended and event.token not in answer.params.stop_ids:
        return replace(event, finish=None if answer.left else FinishReason.LENGTH)
    return event


async def _within(ends: float | None, events: AsyncGenerator[TokenEvent, None]) -> TokenEvent | None:
    """The next event, None behind the last. Raises TimeoutError when the answer's time is over."""
    if ends is None:
        return await anext(events, None)
    async with asyncio.timeout_at(ends):
        return await anext(events, None)


def _user_message(error: Exception, begun: bool) -> str:
    """The sentence for the user, without addresses of the operator's network."""
    if isinstance(error, RefusedError) and error.status in NOT_OURS:
        return f"the engine behind this server refuses it (status {error.status}); its operator finds more in the log"
    if isinstance(error, RefusedError):
        return f"the engine behind this server failed: {error}"
    if begun:
        return "the engine behind this server stopped in the middle of the answer; ask again"
    return "no engine behind this server answers; try again later"
