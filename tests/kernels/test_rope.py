"""Rotary tables and their use: recorded tables, inverse, relative positions, norm, gradients."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsv4.config import Yarn
from dsv4.kernels.rope import apply_rope, frequencies, rotation

TABLES = {"main": (10000.0, None), "compress_yarn": (160000.0, Yarn(16.0, 65536, 32.0, 1.0))}


@pytest.fixture
def table() -> Tensor:
    """[2, 7, 4]: seven positions, eight rotary dims."""
    return rotation(frequencies(8, 100.0), torch.tensor([0, 1, 2, 5, 17, 130, 4000]))


@pytest.mark.parametrize("name", TABLES)
def test_recorded_tables(reference_data: Path, name: str) -> None:
    ops = load_file(reference_data / "reference" / "ops.safetensors")
    theta, yarn = TABLES[name]
    cos, sin = rotation(frequencies(64, theta, yarn), torch.arange(64) * 64)
    torch.testing.assert_close(cos, ops[f"rope.{name}.cos"], atol=1e-6, rtol=0)
    torch.testing.assert_close(sin, ops[f"rope.{name}.sin"], atol=1e-6, rtol=0)


def test_yarn_keeps_fast_dims_and_divides_slow_ones() -> None:
    plain, scaled = frequencies(64, 160000.0), frequencies(64, 160000.0, Yarn())
    torch.testing.assert_close(scaled[0], plain[0])
    torch.testing.assert_close(scaled[-1], plain[-1] / 16)
    assert (scaled <= plain * (1 + 1e-6)).all()
    assert (scaled >= plain / 16 * (1 - 1e-6)).all()


def test_neighbours_form_the_pairs_and_other_dims_pass() -> None:
    x = torch.randn(7, 3, 12)
    positions = torch.tensor([0, 1, 2, 5, 17, 130, 400])
    f_P = frequencies(8, 100.0)
    out = apply_rope(x, rotation(f_P, positions))
    assert torch.equal(out[..., :4], x[..., :4])
    for pair in range(4):
        at = 4 + 2 * pair
        turn = torch.polar(torch.ones(7, dtype=torch.float64), positions.double() * f_P[pair].double())
        wanted = torch.complex(x[..., at].double(), x[..., at + 1].double()) * turn[:, None]
        got = torch.complex(out[..., at].double(), out[..., at + 1].double())
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(7, 12), (7, 3, 12), (7, 8)])
def test_inverse_undoes(table: Tensor, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    back = apply_rope(apply_rope(x, table), table, inverse=True)
    torch.testing.assert_close(back, x, atol=1e-6, rtol=0)
    assert not torch.allclose(apply_rope(x, table), x)


def test_norm_is_kept(table: Tensor) -> None:
    x = torch.randn(7, 3, 12)
    torch.testing.assert_close(apply_rope(x, table).norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=0)


def test_products_depend_on_the_distance_alone() -> None:
    f_P = frequencies(8, 100.0)
    q, k = torch.randn(1, 8).expand(50, 8), torch.randn(1, 8).expand(50, 8)
    position = torch.arange(50)
    products = [
        (apply_rope(q, rotation(f_P, position + shift)) * apply_rope(k, rotation(f_P, position + shift + 9))).sum(-1)
        for shift in (0, 300)
    ]
    constant = products[0][:1].expand(50)
    torch.testing.assert_close(products[0], constant, atol=1e-4, rtol=0)
    torch.testing.assert_close(products[1], constant, atol=1e-4, rtol=0)


def test_dtype_is_kept(table: Tensor) -> None:
    x = torch.randn(7, 12)
    low = apply_rope(x.bfloat16(), table)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low, apply_rope(x.bfloat16().float(), table).bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients(table: Tensor, inverse: bool) -> None:
    x = torch.randn(7, 2, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: apply_rope(y, table, inverse=inverse), [x])
