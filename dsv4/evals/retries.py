"""Requests of a run that are sent again: while a server is busy, starts again, or is lost for a moment."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from dsv4.evals.suite import Answer
from dsv4.verify.endpoint import RefusedError, UnreachableError

WAITS = (3.0, 6.0, 12.0, 24.0)  # seconds before the second try and those after it
BUSY = (408, 409, 425, 429)
_QUIET = 10.0  # seconds between two lines on the same try: many requests fail at once

Tell = Callable[[str], None]


class BrokenAnswerError(UnreachableError):
    """The server began to answer, and the answer is not whole: it is there, whatever is wrong with this request."""


class Retries:
    """Sends the requests to one server, and tells when it does so again. Once a request had all its tries, the last one
    without a response, and the server answered no other meanwhile, it is gone: then none is sent again."""

    def __init__(self, url: str, tell: Tell = lambda text: None) -> None:
        """tell: shows a line to the user."""
        self.url, self._tell = url, tell
        self._gone, self._answered_at = "", 0.0
        self._lost, self._told, self._told_at = False, 0, 0.0  # the highest try told of, and when

    async def ask(self, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """What `send` gives, after as many tries as it takes. Raises RefusedError for what another try cannot help, and
        UnreachableError, naming the server, after the last one."""
        began = time.monotonic()
        for number in range(1, len(WAITS) + 2):
            if self._gone:
                raise UnreachableError(self._gone)
            try:
                answer = await send()
            except (RefusedError, UnreachableError) as error:
                if not _passes(error):
                    raise
                if number > len(WAITS):
                    raise self._given_up(error, began) from error
                self._wait(error, number)
            else:
                self._answered()
                return answer
            # not all at the same moment: a server that starts again would have them all at once
            await asyncio.sleep(WAITS[number - 1] * random.uniform(0.8, 1.2))
        raise AssertionError("the last try returns or raises")

    def _wait(self, error: Exception, number: int) -> None:
        self._lost = self._lost or _is_lost(error)
        now = time.monotonic()
        if number <= self._told and now - self._told_at < _QUIET:
            return
        self._told, self._told_at = number, now
        last = datetime.now() + timedelta(seconds=sum(WAITS[number - 1 :]))
        self._tell(
            f"{self.url}: {error}; the requests that failed are sent again in about {WAITS[number - 1]:.0f} s: "
            f"try {number + 1} of {len(WAITS) + 1}, the last one at about {last:%H:%M:%S}"
        )

    def _answered(self) -> None:
        self._answered_at = time.monotonic()
        if self._lost:
            self._lost, self._told = False, 0
            self._tell(f"{self.url} answers again")

    def _given_up(self, error: Exception, began: float) -> UnreachableError:
        text = f"{self.url}: given up after {len(WAITS) + 1} tries, the last with: {error}"
        if _is_lost(error) and self._answered_at < began:
            if not self._gone:
                self._tell(text)
            self._gone = text
        return UnreachableError(text)


def _is_lost(error: Exception) -> bool:
    """Whether the server gave no response at all."""
    return isinstance(error, UnreachableError) and not isinstance(error, BrokenAnswerError)


def _passes(error: RefusedError | UnreachableError) -> bool:
    """Whether the same request may be answered a little later."""
    return isinstance(error, UnreachableError) or error.status in BUSY or error.status >= 500
