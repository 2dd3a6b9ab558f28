"""Which implementation of an operation runs: the requested one, else the first of its list that takes the inputs.

Every operation lists its implementations, fastest first; all of them compute the same function. There is no silent
fallback: a request for an implementation that does not exist or cannot take the inputs is an error with the reason.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

NO_GRADIENT = "it records no gradient; call it under torch.no_grad()"


def anything(*arguments: Any) -> None:
    """`takes` of an implementation that accepts all inputs of the contract."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute an operation. All members take the same arguments.

    name: "native" (C++), "torch" (fast plain torch) or "reference" (the definition, in plain torch).
    run: the function, for callers that record no gradient. takes: None if it takes these inputs, else the reason why
    not. differentiable: the function for callers that do record one, often an autograd node around `run`; None if the
    implementation has none. differentiates: its conditions beyond `takes`.
    """

    name: str
    run: Callable[..., Any]
    takes: Callable[..., str | None] = anything
    differentiable: Callable[..., Any] | None = None
    differentiates: Callable[..., str | None] = anything

    def refuses(self, recording: bool, arguments: tuple[Any, ...]) -> str | None:
        """Why it cannot run on these arguments; None if it can."""
        if recording and self.differentiable is None:
            return NO_GRADIENT
        return self.takes(*arguments) or (self.differentiates(*arguments) if recording else None)


@dataclass(slots=True)
class Explanation:
    """The implementations that ran inside `explain`: calls of each (operation, implementation), and the reasons why
    faster ones did not run."""

    calls: dict[tuple[str, str], int] = field(default_factory=dict)
    refusals: dict[tuple[str, str], str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """One line of text for each operation and implementation that ran, then one for each refusal."""
        ran = [f"{operation}: {name}, {count} calls" for (operation, name), count in sorted(self.calls.items())]
        return ran + [f"{operation}: not {name}: {why}" for (operation, name), why in sorted(self.refusals.items())]


_EXPLANATION: ContextVar[Explanation | None] = ContextVar("explanation", default=None)


@contextmanager
def explain() -> Iterator[Explanation]:
    """Record which implementations run inside the `with` block, in this thread."""
    explanation = Explanation()
    token = _EXPLANATION.set(explanation)
    try:
        yield explanation
    finally:
        _EXPLANATION.reset(token)


def dispatch(operation: str, impl: str | None, implementations: Sequence[Implementation], *arguments: Any) -> Any:
    """Run `operation` on `arguments` with the implementation `impl`, or with the first that takes them.

    impl "torch" means the fastest implementation that needs no compiler, whatever its name. Raises ValueError naming
    the operation, the implementations that exist, and why the wanted one cannot run.
    """
    recording = torch.is_grad_enabled()
    explanation = _EXPLANATION.get()
    for candidate in implementations:
        if impl is not None and not _answers(candidate, impl):
            continue
        refusal = candidate.refuses(recording, arguments)
        if refusal is None:
            if explanation is not None:
                key = operation, candidate.name
                explanation.calls[key] = explanation.calls.get(key, 0) + 1
            run = candidate.differentiable if recording else candidate.run
            assert run is not None
            return run(*arguments)
        if explanation is not None:
            explanation.refusals[operation, candidate.name] = refusal
        if impl == candidate.name != "torch":
            raise ValueError(f"{operation}: impl {impl!r} cannot take these inputs: {refusal}")
    names = ", ".join(candidate.name for candidate in implementations)
    raise ValueError(f"{operation}: impl must be one of {names}, got {impl!r}")


def _answers(candidate: Implementation, impl: str) -> bool:
    return candidate.name == impl or (impl == "torch" and candidate.name == "reference")
