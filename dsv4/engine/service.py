"""The asyncio front door: the engine runs in its own thread, callers stream events. Implements TokenGenerator."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence

from dsv4.engine.engine import Engine
from dsv4.engine.request import Request
from dsv4.generation import FinishReason, SamplingParams, TokenEvent
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
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="dsv4-engine", daemon=True)
        self._thread.start()

    @property
    def context_length(self) -> int:
        return self._engine.context_length

    def close(self) -> None:
        """Stop the thread; running requests end with `abort`."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    async def stream(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[TokenEvent]:
        """One event per token; the last carries `finish`. Raises ValueError for a prompt the engine refuses.
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
                request = self._engine.submit(prompt, params)
            except Exception as error:  # the caller's to handle; the engine's thread goes on
                listen(error)
                return
            own.append(request)
            self._listeners[request] = listen

        if not self._command(submit):
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
            self._wake.notify()
            return True

    def _cancel(self, *requests: Request) -> None:
        for request in requests:
            self._listeners.pop(request, None)
            self._engine.cancel(request)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._engine.busy or self._closing):
                    self._wake.wait()
                commands, self._commands = self._commands, []
                closing = self._closing
            for command in commands:
                command()
            if closing:
                self._end_all(TokenEvent(None, FinishReason.ABORT))
                return
            self._step()

    def _step(self) -> None:
        try:
            emitted = self._engine.step()
        except Exception as error:  # the process border: a failed step must not take the service down
            log("step_failed", error=f"{type(error).__name__}: {error}")
            self._end_all(TokenEvent(None, FinishReason.ERROR, error="the engine failed on this step"))
            return
        for request, event in emitted:
            listener = self._listeners.get(request)
            if listener is not None and (not listener(event) or event.finish is not None):
                self._cancel(request)

    def _end_all(self, event: TokenEvent) -> None:
        for request, listener in list(self._listeners.items()):
            self._engine.cancel(request)
            listener(event)
        self._listeners.clear()
