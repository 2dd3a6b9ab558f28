"""The jobs of one request in front of an engine whose queue is full: they wait for places, in their order."""

import asyncio
from bisect import insort

# seconds until the first of the line asks again though no job of its request has left the queue; each pause is twice as
# long as the one before, up to the last
FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0


class Places:
    """Shared by the jobs of one request. A job that the engine refused as busy waits here until another one has left
    the queue, or for a while, because places of other requests become free without a sign. The request is refused only
    where the engine takes none of its jobs."""

    def __init__(self) -> None:
        self._count = 0
        self._asking = 0  # jobs of which it is not known yet whether the engine takes them
        self._taken = False
        self._line: list[tuple[int, asyncio.Future[None]]] = []
        self._pause = FIRST_PAUSE
        self._timer: asyncio.TimerHandle | None = None

    def asks(self) -> int:
        """A job begins. Returns its number, which is its place among those that wait."""
        self._count += 1
        self._asking += 1
        return self._count

    def taken(self) -> None:
        """A job that asked has left the queue: its place there is free."""
        self._asking -= 1
        self._taken = True
        self._pause = FIRST_PAUSE
        self._wake()

    async def refused(self, number: int) -> bool:
        """The engine has refused a job that asked: wait until it may ask again. False if the engine has taken no job
        and no other one asks: then the request is refused."""
        self._asking -= 1
        if not self._taken and not self._asking:
            return False
        loop = asyncio.get_running_loop()
        waiting = number, loop.create_future()
        insort(self._line, waiting, key=lambda each: each[0])
        if self._timer is None:
            self._timer = loop.call_later(self._pause, self._again)
        try:
            await waiting[1]
        finally:
            self._line.remove(waiting)
            if not self._line and self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._asking += 1
        return True

    def _wake(self) -> None:
        """Let the first of the line ask again."""
        first = next((turn for _, turn in self._line if not turn.done()), None)
        if first is not None:
            first.set_result(None)

    def _again(self) -> None:
        self._pause = min(2 * self._pause, LAST_PAUSE)
        self._timer = asyncio.get_running_loop().call_later(self._pause, self._again)
        self._wake()
