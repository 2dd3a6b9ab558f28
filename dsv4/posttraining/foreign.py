"""Calling functions of others (verifiers, tools, scorers), which may raise anything, return anything, or never return.

Memory cannot be bounded inside this process: code of the policy's runs in `dsv4.sandbox`.
"""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import UnionType
from typing import Any, TypeVar

T = TypeVar("T")


class ForeignFault(RuntimeError):
    """A function of others raised or did not end: what it was to judge can not be learned from."""


class CallsHangError(RuntimeError):
    """Too many functions of others have not returned. The run stops, and can be resumed."""


@contextmanager
def told_as_fault(what: str, passing: type[Exception] | tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Whatever code of others raises inside becomes a ForeignFault that names `what`, but for the types `passing` and
    CallsHangError."""
    try:
        yield
    except (ForeignFault, CallsHangError):
        raise
    except Exception as error:  # a border: foreign code raises what it likes
        if isinstance(error, passing):
            raise
        raise ForeignFault(f"{what} raised {type(error).__name__}: {str(error)[:300]}") from error


def expected(value: T, kinds: type | UnionType, what: str) -> T:
    """`value`, which others returned for `what`. Raises ForeignFault where it is of another type."""
    if not isinstance(value, kinds):
        wanted = getattr(kinds, "__name__", str(kinds))
        raise ForeignFault(f"{what} must be a {wanted}, the environment returned {type(value).__name__}")
    return value


class ForeignCalls:
    """Runs each call in a thread of its own, for at most some seconds.

    A thread cannot be ended, so one that does not return is left behind. stuck: how many may be left behind until
    CallsHangError stops the run: each of them keeps a core busy or holds memory.
    """

    def __init__(self, stuck: int = 16) -> None:
        self._most, self._stuck = stuck, 0

    async def run(
        self, what: str, seconds: float, call: Callable[..., Any], *args: Any, passing: type[Exception] | None = None
    ) -> Any:
        """`call(*args)`, awaited where it is a coroutine function or gives something to await, all within `seconds`.
        Raises ForeignFault, which names `what`; an exception of the type `passing` comes through as it is."""
        if self._stuck >= self._most:
            raise CallsHangError(f"{self._stuck} calls have not returned, {what} would be one more: the run stops here")
        with told_as_fault(what, passing or ()):
            try:
                if inspect.iscoroutinefunction(call):
                    return await asyncio.wait_for(call(*args), seconds)
                end = time.monotonic() + seconds
                given = await self._in_thread(seconds, call, *args)
                # a lambda or an object that calls a coroutine function looks like a plain one
                return await asyncio.wait_for(given, end - time.monotonic()) if inspect.isawaitable(given) else given
            except TimeoutError:
                raise ForeignFault(f"{what} did not end within {seconds:g} s") from None

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
