"""One way to make a differentiable function of a forward and a backward pass that are written by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., Sequence[Tensor | None]]


@dataclass(frozen=True, slots=True)
class _Passes:
    """The two passes of a node, and what becomes of the results of the first."""

    run: Callable[..., Any]
    backward: Backward
    keep: slice
    give: int | None
    differentiable: int | None


def node(
    run: Callable[..., Any],
    backward: Backward,
    *,
    keep: slice = slice(0),
    give: int | None = None,
    differentiable: int | None = None,
) -> Callable[..., Any]:
    """A function of the arguments of `run` that torch can differentiate once.

    run(*arguments) gives a tensor or a tuple of tensors. keep: which of them the backward pass needs. give: how many of
    them the caller gets (default: all). differentiable: how many of those carry a gradient (default: all).
    backward(gradients, kept, *arguments) gives one gradient per leading argument, None where there is none; arguments
    without an entry have none. `gradients` has one entry per given result. Only tensors that are arguments of their own
    are differentiated: not those inside a list or a dataclass.
    """
    passes = _Passes(run, backward, keep, give, differentiable)

    @wraps(run)
    def through_node(*arguments: Any) -> Any:
        return _Node.apply(passes, *arguments)  # pyrefly: ignore

    return through_node


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: _Passes, *arguments: Any) -> Any:
        made = passes.run(*arguments)
        results = made if isinstance(made, tuple) else (made,)
        # tensors go through save_for_backward: as attributes of ctx they would keep the graph alive for ever
        ctx.tensors = [i for i, argument in enumerate(arguments) if isinstance(argument, Tensor)]
        ctx.arguments = [None if isinstance(argument, Tensor) else argument for argument in arguments]
        ctx.save_for_backward(*(arguments[i] for i in ctx.tensors), *results[passes.keep])
        ctx.passes = passes
        given = results[: passes.give]
        if passes.differentiable is not None:
            ctx.mark_non_differentiable(*given[passes.differentiable :])
        return given if len(given) > 1 else given[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore
        arguments, saved = list(ctx.arguments), ctx.saved_tensors
        for i, tensor in zip(ctx.tensors, saved, strict=False):
            arguments[i] = tensor
        found = ctx.passes.backward(gradients, saved[len(ctx.tensors) :], *arguments)
        return None, *found, *([None] * (len(arguments) - len(found)))
