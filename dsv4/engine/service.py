"""The asyncio front door: the engine runs in its own thread, callers stream events. Implements TokenGenerator."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial

from dsv4.engine.engine import STEP_FAILED, Engine
from dsv4.engine.request import Request
from dsv4.generation import FinishReason, RequestOptions, SamplingParams, TokenEvent
from dsv4.model.transformer import Transformer
from dsv4.observe import log

# a prompt of more tokens takes longer to look at than a thread takes to begin
SHORT_PROMPT = 4096
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0  # seconds after a failed step; doubled with each one that follows
_FAILING = 3  # failed steps in a row until the service calls itself failing
_GIVE_UP = 6  # ... and until everybody who still waits is told
_FORGIVEN = 30.0  # seconds without a failed step after which requests are let in again


class EngineService:
    """Feeds one Engine from any number of event loops. Start it once, close it at the end.

    Everything that touches the engine happens in its thread; callers hand over small commands.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: list[Callable[[], None]] = []
        # each returns whether its caller still listens
        self._listeners: dict[Request, Callable[[TokenEvent], bool]] = {}
        self._updates: list[tuple[Callable[[Transformer], None], bool, int | None, Future[int]]] = []
        self._version = 0
        self._failed_steps = self._failed_in_a_row = 0
        self._last_failure = ("", 0.0)  # what, and when
        self._wake = threading.Condition()
        self._closing = self._draining = False
        self._thread = threading.Thread(target=self._run, name="dsv4-engine", daemon=True)
        self._thread.start()

    @property
    def context_length(self) -> int:
        return self._engine.context_length

    @property
    def failing(self) -> str | None:
        """Why nothing should be sent here now: steps fail again and again, or the thread is gone. None = all well."""
        if not (self._thread.is_alive() or self._closing):
            return "the engine's thread has ended"
        what, when = self._last_failure
        if self._failed_in_a_row < _FAILING or time.monotonic() - when > _FORGIVEN:
            return None
        return f"{self._failed_in_a_row} steps in a row have failed: {what}"

    def counters(self) -> dict[str, float]:
        """What a metrics page shows: totals since the start, and what is going on now. Read without a lock: each number
        is right, together they may be one step apart."""
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

    def close(self, drain: float = 0.0) -> None:
        """Stop the thread. New requests are refused at once; running and waiting ones have `drain` seconds to finish,
        then they end with `abort`."""
        with self._wake:
            self._draining = True
            self._wake.wait_for(lambda: self._closing or not (self._listeners or self._commands), timeout=drain)
            self._closing = True
            self._wake.notify_all()
        self._thread.join()

    def update_weights(
        self, apply: Callable[[Transformer], None], *, wait: bool = True, version: int | None = None
    ) -> "Future[int]":
        """Change the model between two steps, in the engine's thread; the future gives the new version number, or what
        `apply` raised.

        wait: running requests finish on the old weights first, while new ones queue. Otherwise they go on with the new
        weights over what the old ones have cached. Kept prefixes are dropped in any case. version: what the events of
        tokens carry from then on.
        """
        future: Future[int] = Future()
        if not self._command(lambda: self._updates.append((apply, wait, version, future))):
            raise RuntimeError("the engine is closed")
        return future

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncIterator[TokenEvent]:
        """One event per token; the last carries `finish`. Raises what Engine.submit raises for a request it refuses.
        Closing the iterator cancels the request within one step."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        own: list[Request] = []  # empty until the engine's thread has queued it

        def listen(event: TokenEvent | Exception) -> bool:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # the caller's loop is closed
                return False
            return True

        async def prepared() -> Request:
            if params.constraint is None and len(prompt) <= SHORT_PROMPT:
                return self._engine.prepare(prompt, params, options)
            return await asyncio.to_thread(self._engine.prepare, prompt, params, options)

        def submit() -> None:
            try:
                self._engine.enter(request)
            except Exception as error:  # the caller's to handle; the engine's thread goes on
                listen(error)
                return
            own.append(request)
            self._listeners[request] = listen

        if self._draining:
            raise RuntimeError("the engine is closed")
        request = await prepared()
        if self._draining or not self._command(submit):
            raise RuntimeError("the engine is closed")
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.finish is not None:
                    return
        finally:
            self._command(lambda: self._cancel(*own))

    def _command(self, command: Callable[[], None]) -> bool:
        """Hand over a command; False when the engine is closed and has ended everything."""
        with self._wake:
            if self._closing:
                return False
            self._commands.append(command)
            self._wake.notify_all()
            return True

    def _cancel(self, *requests: Request) -> None:
        for request in requests:
            self._listeners.pop(request, None)
            self._engine.cancel(request)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._engine.busy or self._updates or self._closing):
                    self._wake.notify_all()  # whoever drains
                    self._wake.wait()
                commands, self._commands = self._commands, []
                closing = self._closing
            for command in commands:
                self._guarded(command)
            if closing:
                self._end_all(TokenEvent(None, FinishReason.ABORT))
                return
            self._guarded(self._update)
            if self._engine.busy:
                self._step()

    def _guarded(self, work: Callable[[], object]) -> bool:
        """Do a piece of work at the border of the thread: whatever it raises is logged, the thread goes on."""
        try:
            work()
        except BaseException as error:  # also panics of libraries, which are no Exception
            self._last_failure = (f"{type(error).__name__}: {error}"[:400], time.monotonic())
            log("step_failed", error=self._last_failure[0])
            return False
        return True

    def _update(self) -> None:
        """Apply what can be applied now; while an update waits for running requests, no waiting one is admitted."""
        while self._updates and (not self._updates[0][1] or not self._engine.running):
            apply, _, version, future = self._updates.pop(0)
            try:
                apply(self._engine.model)
                self._engine.forget()
            except BaseException as error:  # the caller's to handle; the engine's thread goes on
                future.set_exception(error)
                continue
            self._version += 1
            self._engine.version = version
            log("weights_updated", version=self._version)
            future.set_result(self._version)
        self._engine.admitting = not self._updates

    def _step(self) -> None:
        """A failed step's requests are told by the next one. When none succeeds, the loop slows down, and in the end
        everybody is told."""
        emitted = []
        if self._guarded(lambda: emitted.extend(self._engine.step())):
            self._failed_in_a_row = 0
            for request, event in emitted:
                self._hand_over(request, event)
            return
        self._failed_steps += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _GIVE_UP:
            self._end_all(TokenEvent(None, FinishReason.ERROR, error=STEP_FAILED))
        pause = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2 ** min(self._failed_in_a_row - 1, 10))
        with self._wake:
            self._wake.wait_for(lambda: self._closing, timeout=pause)

    def _hand_over(self, request: Request, event: TokenEvent) -> None:
        listener = self._listeners.get(request)
        if listener is not None and (not listener(event) or event.finish is not None):
            self._cancel(request)

    def _end_all(self, event: TokenEvent) -> None:
        listeners, self._listeners = list(self._listeners.items()), {}
        for request, listener in listeners:
            self._guarded(partial(self._engine.cancel, request))
            listener(event)
        if event.finish is FinishReason.ABORT:
            for *_, future in self._updates:
                future.cancel()
