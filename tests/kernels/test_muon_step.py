"""Muon's native step beside its plain torch: one arithmetic, in place, whatever the threads."""

import pytest
import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.backend import explain
from dsv4.kernels.muon import Matrix, MuonRule, step_matrices

pytestmark = [
    pytest.mark.usefixtures("without_gradients"),
    pytest.mark.skipif(not native.available(), reason="no native kernels here"),
]

SHAPES = [(48, 48), (4, 200), (200, 4), (33, 70), (128, 48), (48, 48)]


def made(seed: int = 0) -> list[Matrix]:
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, int]) -> Tensor:
        return torch.randn(shape, generator=generator)

    return [(draw(shape), draw(shape), draw(shape)) for shape in SHAPES]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16], ids=str)
def test_native_and_torch_agree(dtype: torch.dtype, nesterov: bool) -> None:
    rule = MuonRule(lr=0.02, momentum=0.9, decay=0.3, rms=0.2, nesterov=nesterov, dtype=dtype)
    ours, theirs, before = made(), made(), made()
    for _ in range(2):
        step_matrices(ours, rule, impl="native")
        step_matrices(theirs, rule, impl="torch")
    for (w, momentum, gradient), (w2, momentum2, gradient2), (start, _, _) in zip(ours, theirs, before, strict=True):
        assert torch.equal(momentum, momentum2)
        assert torch.equal(gradient, gradient2)
        assert (w - w2).norm() < (1e-5 if dtype == torch.float32 else 1e-2) * (w2 - start).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16], ids=str)
def test_threads_and_neighbours_change_no_bit(dtype: torch.dtype) -> None:
    rule = MuonRule(lr=0.02, momentum=0.9, decay=0.3, rms=0.2, dtype=dtype)
    alone, together = made(), made()
    torch.set_num_threads(1)
    for one in alone:
        step_matrices([one], rule, impl="native")
    torch.set_num_threads(2)
    step_matrices(together, rule, impl="native")
    for (w, momentum, _), (w2, momentum2, _) in zip(alone, together, strict=True):
        assert torch.equal(w, w2)
        assert torch.equal(momentum, momentum2)


def test_what_the_kernel_cannot_read_goes_through_torch() -> None:
    rule = MuonRule(lr=0.02, momentum=0.9, decay=0.3, rms=0.2)
    whole, turned = made(), made()
    turned[0] = (turned[0][0], turned[0][1], turned[0][2].T.contiguous().T)
    with pytest.raises(ValueError, match="cannot take these inputs: a gradient is not contiguous"):
        step_matrices(turned, rule, impl="native")
    with explain() as explanation:
        step_matrices(turned, rule)
    assert ("step_matrices", "reference") in explanation.calls
    step_matrices(whole, rule, impl="torch")
    for (w, _, _), (w2, _, _) in zip(whole, turned, strict=True):
        assert torch.equal(w, w2)


@pytest.mark.parametrize("impl", ["native", "torch"])
def test_weights_without_gradients_come_to_rest(impl: str) -> None:
    """As an expert that no token reaches: its momentum halves until nothing is left of it."""
    rule = MuonRule(lr=0.02, momentum=0.5, decay=0.0, rms=0.2)
    matrices = made()
    for step in range(160):
        step_matrices(matrices, rule, impl=impl)
        for _, _, gradient in matrices:
            gradient.zero_()
        if step == 130:
            rest = [weight.clone() for weight, _, _ in matrices]
    for (weight, momentum, _), last in zip(matrices, rest, strict=True):
        assert torch.equal(weight, last)
        assert momentum.abs().max() < 1e-40


def test_no_matrices() -> None:
    step_matrices([], MuonRule(lr=0.02, momentum=0.9, decay=0.3, rms=0.2))
