"""What the answers of all dialects have in common: they run once, whole or as a stream of events."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from dsv4.server.dialects.job import AnswerJob
from dsv4.server.wire.errors import ApiError
from dsv4.server.wire.sse import KEEP_ALIVE, event


@dataclass(slots=True)
class Run(ABC):
    """One answer in one dialect, ready to run once: `complete` or `stream`. streaming: which of them the client wants.

    Both raise ApiError, `stream` perhaps after some events.
    """

    job: AnswerJob
    streaming: bool

    @property
    def jobs(self) -> tuple[AnswerJob, ...]:
        """The job of each answer."""
        return (self.job,)

    @abstractmethod
    async def complete(self) -> dict[str, Any]:
        """The whole answer as a JSON object."""

    @abstractmethod
    def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""

    async def close(self) -> None:
        """Stop what still runs. A second call does nothing."""
        await self.job.close()

    def report(self) -> dict[str, Any]:
        """The fields for the log line of the request."""
        return self.job.report()

    def keep_alive(self) -> bytes:
        """The bytes that are sent while there is no event."""
        return KEEP_ALIVE

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that fails."""
        return event(error.body())
