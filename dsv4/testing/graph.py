"""Watching whether an autograd graph is freed when its last user is gone, without the garbage collector's help."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Marker:
    """Something a weak reference can watch."""


class Marked(torch.autograd.Function):
    """The identity; its node holds a marker for as long as the graph lives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, marker: Marker) -> Tensor:
        ctx.marker = marker
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0], None


def graph_is_freed(run: Callable[[Callable[[Tensor], Tensor]], None]) -> bool:
    """Whether nothing of the graph that `run(mark)` builds outlives the call; `run` marks one tensor."""

    def watched() -> weakref.ref[Marker]:
        marker = Marker()
        run(lambda x: Marked.apply(x, marker))
        return weakref.ref(marker)

    gc.collect()
    gc.disable()
    try:
        return watched()() is None
    finally:
        gc.enable()
