"""Calling functions of others (verifiers, tools, scorers), which may raise anything, return anything, or never return.

Memory cannot be bounded inside this process: code of the policy's runs in `dsv4.posttraining.sandbox`.
"""

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class ForeignFault(RuntimeError):
    """A function of others raised or did not end: what it was to judge can not be learned from."""


class ForeignCalls:
    """Runs each call in a thread of its own, for at most some seconds.

    A thread cannot be ended, so one that does not return is left behind. stuck: how many may be left behind until
    RuntimeError stops the run: each of them keeps a core busy or holds memory.
    """

    def __init__(self, stuck: int = 16) -> None:
        self._most, self._stuck = stuck, 0

    async def run(
        self, what: str, seconds: float, call: Callable[..., Any], *args: Any, passing: type[Exception] | None = None
    ) -> Any:
        """`call(*args)`, awaited where it is a coroutine function. Raises ForeignFault, which names `what`; an
        exception of the type `passing` comes through as it is."""
        if self._stuck >= self._most:
            raise RuntimeError(f"{self._stuck} calls have not returned, {what} would be one more: the run stops here")
        try:
            if inspect.iscoroutinefunction(call):
                return await asyncio.wait_for(call(*args), seconds)
            return await self._in_thread(seconds, call, *args)
        except TimeoutError:
            raise ForeignFault(f"{what} did not end within {seconds:g} s") from None
        except Exception as error:  # a border: foreign code raises what it likes
            if passing is not None and isinstance(error, passing):
                raise
            raise ForeignFault(f"{what} raised {type(error).__name__}: {str(error)[:300]}") from error

    async def _in_thread(self, seconds: float, call: Callable[..., Any], *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                self._stuck -= 1  # it did return, too late
            elif error is None:
                future.set_result(result)
            else:
                future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))

        def work() -> None:
            result, failed = None, None
            try:
                result = call(*args)
            except BaseException as error:  # a border: also SystemExit must not end more than this call
                failed = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, result, failed)

        threading.Thread(target=work, name="dsv4-foreign", daemon=True).start()
        try:
            return await asyncio.wait_for(future, seconds)
        except (TimeoutError, asyncio.CancelledError):
            self._stuck += 1
            raise
