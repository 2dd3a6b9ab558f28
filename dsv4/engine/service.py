"""The asyncio front door: the engine runs in its own thread, callers stream events. Implements TokenGenerator."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict

from dsv4.engine.engine import Engine
from dsv4.engine.request import Request
from dsv4.generation import FinishReason, RequestOptions, SamplingParams, TokenEvent
from dsv4.model.transformer import Transformer
from dsv4.observe import log


class EngineService:
    """Feeds one Engine from any number of event loops. Start it once, close it at the end.

    Everything that touches the engine happens in its thread; callers hand over small commands.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: list[Callable[[], None]] = []
        # each says whether anybody still listens
        self._listeners: dict[Request, Callable[[TokenEvent], bool]] = {}
        self._updates: list[tuple[Callable[[Transformer], None], bool, Future[int]]] = []
        self._version = 0
        self._failed_steps = 0
        self._wake = threading.Condition()
        self._closing = self._draining = False
        self._thread = threading.Thread(target=self._run, name="dsv4-engine", daemon=True)
        self._thread.start()

    @property
    def context_length(self) -> int:
        return self._engine.context_length

    def counters(self) -> dict[str, float]:
        """What a metrics page shows: totals since the start, and what is going on now. Read without a lock: each number
        is right, together they may be one step apart."""
        engine = self._engine
        store, reuse = engine.store, engine.prefixes
        counts = {f"{name}_total": value for name, value in asdict(engine.counts).items()}
        counts |= {f"prefix_{name}_total": value for name, value in asdict(reuse.counts).items()}
        if engine.reuse.disk is not None:
            counts |= {f"disk_{name}_total": value for name, value in asdict(engine.reuse.disk.counts).items()}
        return counts | {
            "failed_steps_total": self._failed_steps,
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

    def update_weights(self, apply: Callable[[Transformer], None], *, wait: bool = True) -> "Future[int]":
        """Change the model between two steps, in the engine's thread; the future gives the new version number, or what
        `apply` raised.

        wait: running requests finish on the old weights first, while new ones queue. Otherwise they go on with the new
        weights over what the old ones have cached. Kept prefixes are dropped in any case.
        """
        future: Future[int] = Future()
        if not self._command(lambda: self._updates.append((apply, wait, future))):
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

        def submit() -> None:
            try:
                request = self._engine.submit(prompt, params, options)
            except Exception as error:  # the caller's to handle; the engine's thread goes on
                listen(error)
                return
            own.append(request)
            self._listeners[request] = listen

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
                command()
            if closing:
                self._end_all()
                return
            self._update()
            if self._engine.busy:
                self._step()

    def _update(self) -> None:
        """Apply what can be applied now; while an update waits for running requests, no waiting one is admitted."""
        while self._updates and (not self._updates[0][1] or not self._engine.running):
            apply, _, future = self._updates.pop(0)
            try:
                apply(self._engine.model)
            except Exception as error:  # the caller's to handle; the engine's thread goes on
                future.set_exception(error)
                continue
            self._engine.forget()
            self._version += 1
            log("weights_updated", version=self._version)
            future.set_result(self._version)
        self._engine.admitting = not self._updates

    def _step(self) -> None:
        try:
            emitted = self._engine.step()
        except Exception as error:  # the process border: a failed step must not take the service down
            log("step_failed", error=f"{type(error).__name__}: {error}")
            self._failed_steps += 1
            return  # the next step tells its requests
        for request, event in emitted:
            listener = self._listeners.get(request)
            if listener is not None and (not listener(event) or event.finish is not None):
                self._cancel(request)

    def _end_all(self) -> None:
        for request, listener in list(self._listeners.items()):
            self._engine.cancel(request)
            listener(TokenEvent(None, FinishReason.ABORT))
        self._listeners.clear()
        for _, _, future in self._updates:
            future.cancel()
