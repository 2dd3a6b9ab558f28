"""Native kernels of layers as operators of torch, torch.ops.dsv4.NAME: the form that compile, export and the profiler
see.

An operator has a schema, a CPU implementation and the shapes of its results; it runs without gradients (autograd
nodes are made around it).
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])
_LIBRARY = torch.library.Library("dsv4", "DEF")


def operator(schema: str, like: Callable[..., Any]) -> Callable[[F], F]:
    """Turn a function into the operator `schema`, e.g. "scale(Tensor x, float by) -> Tensor".

    like: from the same arguments, empty results of the right shape and dtype. Results must not share memory with
    arguments.
    """
    name = schema.partition("(")[0]

    def register(run: F) -> F:
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, run, "CPU")
        torch.library.register_fake(f"dsv4::{name}", like, lib=_LIBRARY)
        call = getattr(torch.ops.dsv4, name).default

        @wraps(run)
        def through_torch(*arguments: Any, **named: Any) -> Any:
            return call(*arguments, **named)

        return cast("F", through_torch)

    return register
