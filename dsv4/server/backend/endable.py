"""A generator whose streams can all be ended at once, each with an error.

A stopping server ends the answers in this way that have not finished in time.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from dsv4.generation import RequestOptions, SamplingParams, TokenEvent, TokenGenerator
from dsv4.server.wire.errors import stopping


class Endable:
    """Passes every call on to `inner`. After `end` every stream raises ApiError 503."""

    def __init__(self, inner: TokenGenerator) -> None:
        self._inner = inner
        self._waiting: set[asyncio.Task[Any]] = set()
        self._ended = False

    @property
    def context_length(self) -> int:
        """As of `inner`."""
        return self._inner.context_length

    @property
    def failing(self) -> str | None:
        """The reason why `inner` cannot answer at present, None if it can or does not report it."""
        return getattr(self._inner, "failing", None)

    def end(self) -> None:
        """End all streams now, and every later stream at its start. Call it in the event loop of the streams."""
        self._ended = True
        for task in self._waiting:
            task.cancel()

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        """See TokenGenerator; raises ApiError 503 once `end` was called."""
        events = self._inner.stream(prompt, params, options)
        try:
            while not self._ended:
                # each event may be awaited by another task: `AnswerJob.begin` awaits the first in one of its own
                task = asyncio.current_task()
                assert task is not None
                self._waiting.add(task)
                try:
                    event = await anext(events, None)
                except asyncio.CancelledError:
                    if not self._ended:
                        raise
                    task.uncancel()
                    break
                finally:
                    self._waiting.discard(task)
                if event is None:
                    return
                yield event
            raise stopping()
        finally:
            # the protocol promises an iterator; only a generator can be closed
            if isinstance(events, AsyncGenerator):
                await events.aclose()
