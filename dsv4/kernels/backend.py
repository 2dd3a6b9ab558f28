"""Which implementation of an operation runs: the one asked for, else the first of the operation's own list.

There is no silent fallback: asking for an implementation that does not exist here is an error.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def choose(operation: str, impl: str | None, available: Mapping[str, F]) -> F:
    """Return available[impl], or the first entry when `impl` is None.

    Each operation lists its implementations fastest first; all of them compute the same function.
    Raises ValueError naming the operation and what exists.
    """
    if impl is None:
        return next(iter(available.values()))
    if impl not in available:
        raise ValueError(f"{operation}: impl must be one of {', '.join(available)}, got {impl!r}")
    return available[impl]
