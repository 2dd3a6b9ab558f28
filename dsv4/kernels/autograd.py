"""Makes a differentiable function of a forward and a backward pass that are written by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Backward = Callable[..., Sequence[Tensor | None]]
F = TypeVar("F", bound=Callable[..., Any])


def once_differentiable(backward: F) -> F:
    """torch's mark of a backward pass that has no graph of its own; the function keeps its type."""
    return cast("F", torch.autograd.function.once_differentiable(backward))


@dataclass(frozen=True, slots=True)
class _Passes:
    """The two passes of a node, and the use of the first pass's results."""

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
        return _KernelNode.apply(passes, *arguments)

    return through_node


class _KernelNode(torch.autograd.Function):
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
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        arguments, saved = list(ctx.arguments), ctx.saved_tensors
        for i, tensor in zip(ctx.tensors, saved, strict=False):
            arguments[i] = tensor
        found = ctx.passes.backward(grad_outputs, saved[len(ctx.tensors) :], *arguments)
        return None, *found, *([None] * (len(arguments) - len(found)))
