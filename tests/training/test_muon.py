"""Muon: torch.optim.Muon as oracle, update size, independent pieces, and an exact state (report 2.4)."""

import io

import pytest
import torch
from torch import Tensor

from dsv4.kernels.newton_schulz import FAST, HYBRID, orthogonalize
from dsv4.training.muon import UPDATE_RMS, Muon

SHAPES = {"square": (48, 48), "wide": (32, 96), "tall": (96, 32)}


def parameters(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(shape) * 0.1) for shape in shapes]


def set_gradients(params: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("nesterov", [True, False])
def test_torch_muon_makes_the_same_five_steps(nesterov: bool) -> None:
    ours = parameters(*SHAPES.values())
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    start = [p.detach().clone() for p in ours]
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "nesterov": nesterov}
    mine = Muon(ours, rms=0.2, steps=[FAST] * 5, dtype=torch.bfloat16, **settings)
    oracle = torch.optim.Muon(theirs, ns_coefficients=FAST, ns_steps=5, adjust_lr_fn="match_rms_adamw", **settings)
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        mine.step()
        oracle.step()
    for a, b, begun in zip(ours, theirs, start, strict=True):
        # both round their products to bfloat16, at different places
        assert (a - b).norm() < 0.02 * (b - begun).norm()


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 2e-6), (torch.int16, 2e-4)], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_update_is_the_algorithm_written_out(shape: tuple[int, int], dtype: torch.dtype, allowed: float) -> None:
    lr, mu, decay = 0.01, 0.95, 0.1
    params = parameters(shape)
    wanted, momentum = params[0].detach().double(), torch.zeros(shape, dtype=torch.float64)
    optimizer = Muon(params, lr=lr, momentum=mu, weight_decay=decay, dtype=dtype)
    for step in range(4):
        set_gradients(params, step)
        grad = params[0].grad.double()
        momentum = mu * momentum + grad
        x = mu * momentum + grad
        x = x / x.norm()
        for a, b, c in HYBRID:
            gram = x @ x.T
            x = a * x + b * gram @ x + c * gram @ gram @ x
        wanted = wanted * (1 - lr * decay) - lr * x * max(shape) ** 0.5 * UPDATE_RMS
        optimizer.step()
    torch.testing.assert_close(params[0].double(), wanted, atol=allowed, rtol=0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_updates_have_rms_018_and_equal_singular_values(shape: tuple[int, int]) -> None:
    params = parameters(shape)
    before = params[0].detach().clone()
    optimizer = Muon(params, lr=1.0, weight_decay=0.0)
    set_gradients(params, 0)
    optimizer.step()
    update = before - params[0].detach()
    assert float(update.square().mean().sqrt()) == pytest.approx(UPDATE_RMS, rel=0.01)
    values = torch.linalg.svdvals(update) / (UPDATE_RMS * max(shape) ** 0.5)
    torch.testing.assert_close(values, torch.ones_like(values), atol=0.01, rtol=0)


def test_rows_and_leading_dimensions_are_matrices_of_their_own() -> None:
    whole, stack = parameters((24, 40), (3, 8, 40))
    parts = [torch.nn.Parameter(part.detach().clone()) for part in (*whole.split([4, 4, 16]), *stack)]
    together = Muon([{"params": [whole], "rows": (4, 4, 16)}, {"params": [stack]}], lr=0.1)
    apart = Muon(parts, lr=0.1)
    for step in range(3):
        set_gradients([whole, stack], step)
        assert whole.grad is not None
        assert stack.grad is not None
        for part, grad in zip(parts, (*whole.grad.split([4, 4, 16]), *stack.grad), strict=True):
            part.grad = grad.clone()
        together.step()
        apart.step()
    for part, mine in zip(parts, (*whole.split([4, 4, 16]), *stack), strict=True):
        torch.testing.assert_close(mine, part, atol=1e-6, rtol=0)
    fused = orthogonalize(whole.grad[None])[0]
    assert not torch.allclose(fused[:4], orthogonalize(whole.grad[None, :4])[0], atol=0.05)


def test_parameters_without_gradient_do_not_move() -> None:
    used, unused = parameters((4, 6), (4, 6))
    kept = unused.detach().clone()
    used.grad = torch.randn(4, 6)
    Muon([used, unused], lr=0.1).step()
    assert torch.equal(unused, kept)


def test_the_state_comes_back_bit_for_bit() -> None:
    def run(steps: range, params: list[torch.nn.Parameter], optimizer: Muon) -> None:
        for step in steps:
            set_gradients(params, step)
            optimizer.step()

    def make(params: list[Tensor]) -> tuple[list[torch.nn.Parameter], Muon]:
        copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
        return copies, Muon([{"params": copies[:1], "rows": (4, 12)}, {"params": copies[1:]}], lr=0.05)

    start = parameters((16, 8), (6, 10))
    straight, optimizer = make(start)
    run(range(6), straight, optimizer)
    first, optimizer = make(start)
    run(range(3), first, optimizer)
    file = io.BytesIO()
    torch.save({"params": first, "optimizer": optimizer.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    second, optimizer = make(saved["params"])
    optimizer.load_state_dict(saved["optimizer"])
    run(range(3, 6), second, optimizer)
    for a, b in zip(straight, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon(parameters((2, 2)), **settings)


def test_vectors_and_wrong_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs matrices, got a parameter of shape \[5\]"):
        Muon(parameters((5,)))
    with pytest.raises(ValueError, match=r"rows \(2, 2\) must add up to the height of \[5, 3\]"):
        Muon([{"params": parameters((5, 3)), "rows": (2, 2)}])
