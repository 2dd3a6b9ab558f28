"""Which implementation of an operation runs: the one asked for, else the first of its list that can run here.

There is no silent fallback: asking for an implementation that does not exist or cannot take these inputs is an error.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def choose(operation: str, impl: str | None, available: Mapping[str, F], *, native: bool = False) -> F:
    """Return available[impl], or the best entry when `impl` is None.

    Each operation lists its implementations fastest first; all of them compute the same function. "cpu" is the native
    one: it is left out unless `native` says that it can take these inputs (CPU memory, a supported dtype, no gradient).
    "torch" is the best of the others, whatever it is called. Raises ValueError naming the operation and what exists.
    """
    usable = {name: run for name, run in available.items() if native or name != "cpu"}
    if impl is None:
        return next(iter(usable.values()))
    if impl == "torch":
        return next(run for name, run in available.items() if name != "cpu")
    if impl not in usable:
        why = " (the native kernel cannot take these inputs here)" if impl in available else ""
        raise ValueError(f"{operation}: impl must be one of {', '.join(usable)}, got {impl!r}{why}")
    return usable[impl]
