"""Which implementation runs, and why: one rule for all operations."""

import os
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dsv4.kernels
from dsv4.kernels import native
from dsv4.kernels.autograd import node
from dsv4.kernels.backend import Implementation, dispatch, explain
from dsv4.testing.graph import graph_is_freed


def takes_even(x: int) -> str | None:
    return None if x % 2 == 0 else f"{x} is odd"


FAST = Implementation("native", lambda x: ("native", x), takes_even)
PLAIN = Implementation("torch", lambda x: ("torch", x), differentiable=lambda x: ("torch with gradient", x))
SLOW = Implementation("reference", lambda x: ("reference", x), differentiable=lambda x: ("reference with gradient", x))
ALL = (FAST, PLAIN, SLOW)


def test_native_kernels_run_here_unless_they_are_turned_off() -> None:
    """Their tests skip without them: without this one a machine that lacks a compiler would test none of them."""
    assert native.available() or os.environ.get("DSV4_NATIVE") == "0", native.why_not()


@pytest.mark.parametrize(
    ("impl", "argument", "recording", "ran"),
    [
        (None, 2, False, "native"),
        (None, 3, False, "torch"),
        (None, 2, True, "torch with gradient"),
        ("native", 2, False, "native"),
        ("torch", 2, False, "torch"),
        ("reference", 2, True, "reference with gradient"),
    ],
)
def test_the_first_that_takes_the_inputs_runs(impl: str | None, argument: int, recording: bool, ran: str) -> None:
    with torch.inference_mode(False), torch.set_grad_enabled(recording):
        assert dispatch("op", impl, ALL, argument) == (ran, argument)


def test_without_a_torch_version_the_reference_answers_to_torch() -> None:
    with torch.no_grad():
        assert dispatch("op", "torch", (FAST, SLOW), 2) == ("reference", 2)


def test_what_was_asked_for_and_cannot_run_is_an_error_with_the_reason() -> None:
    with torch.no_grad():
        with pytest.raises(ValueError, match="op: impl 'native' cannot take these inputs: 3 is odd"):
            dispatch("op", "native", ALL, 3)
        with pytest.raises(ValueError, match="op: impl must be one of native, torch, reference, got 'cuda'"):
            dispatch("op", "cuda", ALL, 2)
    with torch.enable_grad(), pytest.raises(ValueError, match="it records no gradient"):
        dispatch("op", "native", ALL, 2)


def test_an_explanation_counts_calls_and_keeps_reasons() -> None:
    with torch.no_grad(), explain() as explanation:
        for argument in (2, 4, 5):
            dispatch("op", None, ALL, argument)
    dispatch("op", None, ALL, 7)
    assert explanation.calls == {("op", "native"): 2, ("op", "torch"): 1}
    assert explanation.lines() == ["op: native, 2 calls", "op: torch, 1 calls", "op: not native: 5 is odd"]


def cube(x: Tensor, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    return factor * x**3, x.detach() > 0, x**2


def cube_backward(gradients: tuple[Tensor, ...], kept: list[Tensor], x: Tensor, factor: float) -> tuple[Tensor]:
    assert torch.equal(kept[0], x**2)
    return (gradients[0] * 3 * factor * kept[0],)


def test_a_node_keeps_gives_and_differentiates_what_it_is_told() -> None:
    run = node(cube, cube_backward, keep=slice(2, 3), give=2, differentiable=1)
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    value, positive = run(x, 2.0)
    assert not positive.requires_grad
    assert torch.autograd.gradcheck(lambda x: run(x, 2.0)[0], x)
    assert torch.autograd.grad(value.sum(), x)[0].allclose(6 * x**2)
    assert graph_is_freed(lambda mark: run(mark(x), 2.0)[0].sum().backward())


def test_every_kernel_folder_has_one_form() -> None:
    """A contract and its definition; faster versions are called torch and native, and hide no real torch."""
    root = Path(dsv4.kernels.__file__).parent
    for folder in sorted(path.parent for path in root.glob("*/reference.py")):
        modules = {path.stem for path in folder.glob("*.py")}
        assert not modules & {"cpu", "trained", "recomputed", "blocked", "chunked", "batched", "grouped"}, folder
        contract = (folder / "__init__.py").read_text(encoding="utf-8")
        if "torch" in modules:
            assert not re.search(r"^import torch$", contract, re.MULTILINE), f"{folder}: torch is the module beside it"
