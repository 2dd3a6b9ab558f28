"""The engine for asyncio: it runs in its own thread, and callers stream events. Implements TokenGenerator."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial

from dsv4.engine.batching import STEP_FAILED
from dsv4.engine.engine import Engine
from dsv4.engine.report import report_of
from dsv4.engine.request import Request
from dsv4.generation import EngineReport, FinishReason, RequestOptions, SamplingParams, TokenEvent
from dsv4.model.transformer import Transformer
from dsv4.observe import log

# checking a longer prompt takes more time than starting a thread
SHORT_PROMPT = 4096
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0  # seconds after a failed step; doubled after each further one
_FAILING = 3  # failed steps in a row until the service reports that it is failing
_GIVE_UP = 6  # ... and until all waiting callers get an error
# tokens of steps that are faster than this reach their callers together: each turn of an event loop costs as much as
# several tokens, and competes with the engine for Python's lock
TURN_SECONDS = 0.003
_FORGIVEN = 30.0  # seconds without a failed step after which requests are accepted again


@dataclass(eq=False, slots=True)
class _Caller:
    """Who reads the events of a request: a loop, the events that it has not read, and what waits for one. It costs a
    third of an `asyncio.Queue`."""

    loop: asyncio.AbstractEventLoop
    events: "deque[TokenEvent | Exception]" = field(default_factory=deque)
    waiting: "asyncio.Future[None] | None" = None

    def tell(self, event: TokenEvent | Exception) -> bool:
        """Queue one event. False if the loop is closed. Any thread may call it."""
        return _in_loop(self.loop, self.put, event)

    def put(self, event: TokenEvent | Exception) -> None:
        """Queue one event, in the loop."""
        self.events.append(event)
        waiting, self.waiting = self.waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def arrived(self) -> None:
        """Wait, in the loop, until an event is queued. Only one task may wait."""
        self.waiting = self.loop.create_future()
        await self.waiting


class EngineService:
    """Serves one Engine to any number of event loops. Make it once, and close it at the end.

    Only its own thread uses the engine; callers send commands to that thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: list[Callable[[], None]] = []
        self._callers: dict[Request, _Caller] = {}
        self._updates: list[tuple[Callable[[Transformer], None], bool, int | None, Future[int]]] = []
        self._version = 0
        self._failed_steps = self._failed_in_a_row = 0
        self._last_failure = ("", 0.0)  # message and time
        self._held: list[tuple[Request, TokenEvent]] = []  # events that are not sent yet
        self._due = False  # they are to be sent as soon as the next step computes
        self._sent = 0.0  # when events were last sent
        self._wake = threading.Condition()
        self._closing = self._draining = False
        engine.runner.meanwhile = self._meanwhile
        self._thread = threading.Thread(target=self._run, name="dsv4-engine", daemon=True)
        self._thread.start()

    @property
    def context_length(self) -> int:
        """As in TokenGenerator."""
        return self._engine.context_length

    @property
    def failing(self) -> str | None:
        """The reason why no request should be sent now: steps fail repeatedly, or the thread has ended. None = it
        works."""
        if not (self._thread.is_alive() or self._closing):
            return "the engine's thread has ended"
        what, when = self._last_failure
        if self._failed_in_a_row < _FAILING or time.monotonic() - when > _FORGIVEN:
            return None
        return f"{self._failed_in_a_row} steps in a row have failed: {what}"

    def counters(self) -> dict[str, float]:
        """The numbers of the metrics page: totals since the start, and the current state. They are read without a lock:
        each number is right, but two of them may be one step apart."""
        engine = self._engine
        store, reuse = engine.cache.store, engine.cache.prefixes
        counts = {f"{name}_total": value for name, value in asdict(engine.counts).items()}
        counts |= {f"prefix_{name}_total": value for name, value in asdict(reuse.counts).items()}
        if engine.cache.disk is not None:
            counts |= {f"disk_{name}_total": value for name, value in asdict(engine.cache.disk.counts).items()}
            counts["disk_off"] = int(engine.cache.disk_off)
        return counts | {
            "failed_steps_total": self._failed_steps,
            "failing": int(self.failing is not None),
            "running": engine.running,
            "waiting": engine.waiting,
            "weights_version": self._version,
            "pages": store.pages.count,
            "pages_free": store.pages.free,
            "slots": store.slots.count,
            "slots_free": store.slots.free,
            "prefixes": len(reuse),
            "cache_bytes": store.bytes,
        }

    async def report(self) -> EngineReport:
        """The state between two steps. Raises RuntimeError when the engine is closed."""
        future: Future[EngineReport] = Future()

        def make() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(report_of(self._engine))
            except BaseException as error:  # the caller handles it; the engine's thread continues
                future.set_exception(error)

        if not self._command(make):
            raise RuntimeError("the engine is closed")
        return await asyncio.wrap_future(future)

    def close(self, drain: float = 0.0) -> None:
        """Stop the thread. New requests are refused at once; running and waiting ones have `drain` seconds to finish,
        then they end with `abort`."""
        with self._wake:
            self._draining = True
            self._wake.wait_for(lambda: self._closing or not (self._callers or self._commands), timeout=drain)
            self._closing = True
            self._wake.notify_all()
        self._thread.join()

    def update_weights(
        self, apply: Callable[[Transformer], None], *, wait: bool = True, version: int | None = None
    ) -> "Future[int]":
        """Change the model between two steps, in the engine's thread; the future has the new version number, or the
        exception of `apply`.

        wait: running requests finish with the old weights first, and new ones wait. Otherwise running requests continue
        with the new weights on rows that the old weights have cached. Kept prefixes are dropped in both cases. version:
        the version in the events of later tokens.
        """
        future: Future[int] = Future()
        if not self._command(lambda: self._updates.append((apply, wait, version, future))):
            raise RuntimeError("the engine is closed")
        return future

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncIterator[TokenEvent]:
        """One event for each token; the last one has `finish`. Raises the exceptions of Engine.submit for a request
        that is refused. Closing the iterator cancels the request within one step."""
        caller = _Caller(asyncio.get_running_loop())
        own: list[Request] = []  # empty until the engine's thread has queued the request

        async def prepared() -> Request:
            if params.constraint is None and len(prompt) <= SHORT_PROMPT:
                return self._engine.prepare(prompt, params, options)
            return await asyncio.to_thread(self._engine.prepare, prompt, params, options)

        def submit() -> None:
            try:
                self._engine.enter(request)
            except Exception as error:  # the caller handles it; the engine's thread continues
                caller.tell(error)
                return
            own.append(request)
            self._callers[request] = caller

        if self._draining:
            raise RuntimeError("the engine is closed")
        request = await prepared()
        if self._draining or not self._command(submit):
            raise RuntimeError("the engine is closed")
        try:
            while True:
                if not caller.events:
                    await caller.arrived()
                event = caller.events.popleft()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.finish is not None:
                    return
        finally:
            self._command(lambda: self._cancel(*own))

    def _command(self, command: Callable[[], None]) -> bool:
        """Send a command to the engine's thread; False when the engine is closed."""
        with self._wake:
            if self._closing:
                return False
            self._commands.append(command)
            self._wake.notify_all()
            return True

    def _cancel(self, *requests: Request) -> None:
        for request in requests:
            self._callers.pop(request, None)
            self._engine.cancel(request)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._engine.busy or self._updates or self._closing):
                    self._wake.notify_all()  # `close` may wait for this
                    self._wake.wait()
                commands, self._commands = self._commands, []
                closing = self._closing
            if commands:
                # they may bring a long prompt or new weights, which no token has to wait for
                self._hand_over()
            for command in commands:
                self._guarded(command)
            if closing:
                self._end_all(TokenEvent(None, FinishReason.ABORT))
                return
            self._guarded(self._update)
            if self._engine.busy:
                self._step()

    def _guarded(self, work: Callable[[], object]) -> bool:
        """Call `work` at the border of the thread: an exception is logged, and the thread continues."""
        try:
            work()
        except BaseException as error:  # also panics of Rust libraries, which are no Exception
            self._last_failure = (f"{type(error).__name__}: {error}"[:400], time.monotonic())
            log("step_failed", error=self._last_failure[0])
            return False
        return True

    def _update(self) -> None:
        """Apply the updates that need not wait. While an update waits for running requests, no request is admitted."""
        while self._updates and (not self._updates[0][1] or not self._engine.running):
            self._hand_over()  # the last tokens of the old weights do not wait for the new ones
            apply, _, version, future = self._updates.pop(0)
            try:
                apply(self._engine.model)
                self._engine.forget()
            except BaseException as error:  # the caller handles it; the engine's thread continues
                future.set_exception(error)
                continue
            self._version += 1
            self._engine.version = version
            log("weights_updated", version=self._version)
            future.set_result(self._version)
        self._engine.admitting = not self._updates

    def _step(self) -> None:
        """Run one step. Its events are sent while the next one computes, if there is one. After a failed step, the next
        step ends its requests. When steps keep failing, the loop slows down, and in the end all callers get an
        error."""
        emitted = []
        if self._guarded(lambda: emitted.extend(self._engine.step())):
            self._failed_in_a_row = 0
            unsent, self._held = self._due, self._held + emitted
            self._due = time.monotonic() - self._sent >= TURN_SECONDS or any(map(_urgent, emitted))
            if unsent or not self._engine.busy:
                self._hand_over()
            return
        self._hand_over()
        self._failed_steps += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _GIVE_UP:
            self._end_all(TokenEvent(None, FinishReason.ERROR, error=STEP_FAILED))
        pause = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2 ** min(self._failed_in_a_row - 1, 10))
        with self._wake:
            self._wake.wait_for(lambda: self._closing, timeout=pause)

    def _meanwhile(self) -> None:
        """Send what is due, since a step begins to compute: loops that are woken earlier would want Python's lock while
        the engine prepares the step, and no core would compute."""
        if self._due:
            self._hand_over()

    def _hand_over(self) -> None:
        """Send the held events to their callers. Each loop is woken once, because a wake-up takes more time than an
        event."""
        emitted, self._held, self._due = self._held, [], False
        self._sent = time.monotonic()
        batches: dict[asyncio.AbstractEventLoop, list[tuple[Request, _Caller, TokenEvent]]] = {}
        for request, event in emitted:
            if (caller := self._callers.get(request)) is not None:
                batches.setdefault(caller.loop, []).append((request, caller, event))
        for loop, batch in batches.items():
            if not _in_loop(loop, _deliver, batch):
                # after this step, which may be computing them
                self._command(partial(self._cancel, *(request for request, _, _ in batch)))
            for request, _, event in batch:
                if event.finish is not None:
                    self._callers.pop(request, None)

    def _end_all(self, event: TokenEvent) -> None:
        self._hand_over()
        callers, self._callers = list(self._callers.items()), {}
        for request, caller in callers:
            self._guarded(partial(self._engine.cancel, request))
            caller.tell(event)
        if event.finish is FinishReason.ABORT:
            for *_, future in self._updates:
                future.cancel()


def _urgent(emitted: tuple[Request, TokenEvent]) -> bool:
    """Whether an event is sent at once: it is the first token of an answer or no token, or ends an answer."""
    _, event = emitted
    return event.token is None or event.finish is not None or event.reused is not None


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: object) -> bool:
    """Call a function soon in an event loop of another thread. False if the loop is closed."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        return False
    return True


def _deliver(batch: Sequence[tuple[Request, _Caller, TokenEvent]]) -> None:
    for _, caller, event in batch:
        caller.put(event)
