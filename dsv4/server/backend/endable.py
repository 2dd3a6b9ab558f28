"""A generator whose streams can be ended: all at once by a server that stops, or those of one request by an operator.

A stopping server ends the answers in this way that have not finished in time.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.generation import RequestOptions, SamplingParams, TokenEvent, TokenGenerator
from dsv4.server.backend.wrapper import GeneratorWrapper
from dsv4.server.wire.errors import ApiError, stopping


@dataclass(eq=False, slots=True)
class _Stream:
    """label: of its request. task: what awaits its next event. error: why it was ended."""

    label: str
    task: asyncio.Task[Any] | None = None
    error: ApiError | None = None

    def end(self, error: ApiError) -> None:
        self.error = self.error or error
        if self.task is not None:
            self.task.cancel()


class Endable(GeneratorWrapper):
    """Passes every call on to `inner`. After `end` every stream raises ApiError 503."""

    def __init__(self, inner: TokenGenerator) -> None:
        super().__init__(inner)
        self._streams: set[_Stream] = set()
        self._ended = False

    def end(self) -> None:
        """End all streams now, and every later stream at its start. Call it in the event loop of the streams."""
        self._ended = True
        for stream in self._streams:
            stream.end(stopping())

    def cancel(self, label: str) -> int:
        """End the streams of the requests with this label now: they raise ApiError 403. Returns how many there were.
        Call it in the event loop of the streams."""
        found = [stream for stream in self._streams if stream.label == label]
        for stream in found:
            stream.end(ApiError(403, "an operator of this server cancelled this request", code="cancelled"))
        return len(found)

    async def stream(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions | None = None
    ) -> AsyncGenerator[TokenEvent, None]:
        """See TokenGenerator; raises ApiError 503 once `end` was called, 403 once it was cancelled."""
        events = self._inner.stream(prompt, params, options)
        own = _Stream(options.label if options is not None else "", error=stopping() if self._ended else None)
        self._streams.add(own)
        try:
            while own.error is None:
                # each event may be awaited by another task: `AnswerJob.begin` awaits the first in one of its own
                own.task = asyncio.current_task()
                assert own.task is not None
                try:
                    event = await anext(events, None)
                except asyncio.CancelledError:
                    if own.error is None:
                        raise
                    own.task.uncancel()
                    break
                finally:
                    own.task = None
                if event is None:
                    return
                yield event
            raise own.error or stopping()
        finally:
            self._streams.discard(own)
            # the protocol promises an iterator; only a generator can be closed
            if isinstance(events, AsyncGenerator):
                await events.aclose()
