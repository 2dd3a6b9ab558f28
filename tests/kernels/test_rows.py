"""Packed cache rows: the values are those of the simulated casts, and packing again changes no byte."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv4.kernels import native, quant, rows

pytestmark = pytest.mark.usefixtures("without_gradients")
NATIVE = pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="no native kernels here"))
IMPLEMENTATIONS = [NATIVE, "reference"]
ENTRY_SHAPES = [(512, 64), (64, 16), (128, 0), (16, 16), (33, 2), (65, 1), (129, 64), (1, 0), (1, 1), (95, 31)]
INDEX_DIMS = [128, 64, 32, 2, 30, 34, 62, 66, 126, 130]


def wild(count: int, dim: int) -> Tensor:
    """Values of all magnitudes: normal, tiny, denormal, huge, zeros of both signs, exact halves of the ranges."""
    x = torch.randn(count, dim)
    scale = torch.tensor([1.0, 1e-3, 1e-6, 1e-30, 1e-38, 1e-42, 1e30, 3e37, 0.0, -0.0])
    x = x * scale[torch.arange(count) % len(scale), None]
    exact = torch.tensor([224.0, 3.0, -3.0, 448.0, 6.0, 2.0**-9, 3 * 2.0**-126, -224 * 2.0**-21, 1e-4])
    x[torch.rand(count, dim) < 0.01] = 0.0
    return torch.where(torch.rand(count, 1) < 0.3, exact[torch.randint(len(exact), (count, dim))], x)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(7).view(torch.int32), b.nan_to_num(7).view(torch.int32)) and torch.equal(
        a.isnan(), b.isnan()
    )


def simulated_entry(kv_NC: Tensor, rope_dim: int) -> Tensor:
    split = kv_NC.shape[1] - rope_dim
    return torch.cat([quant.simulate_fp8(kv_NC[:, :split], 64), kv_NC[:, split:].bfloat16().float()], dim=1)


def simulated_index(key_NI: Tensor) -> Tensor:
    dim = key_NI.shape[1]
    return quant.simulate_fp4(torch.nn.functional.pad(key_NI, (0, -dim % 32)))[:, :dim]


def test_sizes_are_those_of_the_released_layout() -> None:
    assert rows.entry_bytes(512, 64) == 584
    assert rows.index_bytes(128) == 68
    assert rows.entry_bytes(64, 16) == 88
    assert rows.index_bytes(34) == 19


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("dim", "rope_dim"), ENTRY_SHAPES)
@pytest.mark.parametrize("count", [0, 1, 31, 200])
def test_entries_are_the_simulated_cast(count: int, dim: int, rope_dim: int, impl: str) -> None:
    kv_NC = wild(count, dim)
    row_NB = rows.pack_entry(kv_NC, rope_dim, impl=impl)
    assert row_NB.dtype == torch.uint8
    assert row_NB.shape == (count, rows.entry_bytes(dim, rope_dim))
    back_NC = rows.unpack_entry(row_NB, dim, rope_dim, impl=impl)
    assert same_bits(back_NC, simulated_entry(kv_NC, rope_dim))
    assert torch.equal(rows.pack_entry(back_NC, rope_dim, impl=impl), row_NB)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dim", INDEX_DIMS)
@pytest.mark.parametrize("count", [0, 1, 33, 200])
def test_keys_are_the_simulated_cast(count: int, dim: int, impl: str) -> None:
    key_NI = wild(count, dim)
    row_NB = rows.pack_index(key_NI, impl=impl)
    assert row_NB.shape == (count, rows.index_bytes(dim))
    back_NI = rows.unpack_index(row_NB, dim, impl=impl)
    assert same_bits(back_NI, simulated_index(key_NI))
    assert torch.equal(rows.pack_index(back_NI, impl=impl), row_NB)


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
@pytest.mark.parametrize("bad", [None, float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_native_bytes_are_the_reference_bytes(bad: float | None) -> None:
    for dim, rope_dim in ENTRY_SHAPES:
        kv_NC = wild(129, dim)
        if bad is not None:
            kv_NC[torch.arange(129), torch.randint(dim, (129,))] = bad
        packed = rows.pack_entry(kv_NC, rope_dim, impl="native")
        assert torch.equal(packed, rows.pack_entry(kv_NC, rope_dim, impl="reference"))
        back_NC = rows.unpack_entry(packed, dim, rope_dim, impl="native")
        assert same_bits(back_NC, rows.unpack_entry(packed, dim, rope_dim, impl="reference"))
        assert torch.equal(rows.pack_entry(back_NC, rope_dim, impl="native"), packed)
    for dim in INDEX_DIMS:
        key_NI = wild(127, dim)
        if bad is not None:
            key_NI[torch.arange(127), torch.randint(dim, (127,))] = bad
        packed = rows.pack_index(key_NI, impl="native")
        assert torch.equal(packed, rows.pack_index(key_NI, impl="reference"))
        back_NI = rows.unpack_index(packed, dim, impl="native")
        assert same_bits(back_NI, rows.unpack_index(packed, dim, impl="reference"))
        assert torch.equal(rows.pack_index(back_NI, impl="native"), packed)


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
def test_every_code_and_every_scale() -> None:
    code = torch.arange(256, dtype=torch.uint8)
    code[(code & 0x7F) == 0x7F] = 0  # NaN, which is stored as a scale
    row_NB = torch.cat([code.repeat(256, 1), torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 8)], dim=1)
    back_NC = rows.unpack_entry(row_NB, 256, 0, impl="native")
    assert same_bits(back_NC, rows.unpack_entry(row_NB, 256, 0, impl="reference"))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=70))
def test_any_values_survive_a_second_packing(values: list[float], impl: str) -> None:
    x = torch.tensor([values[: len(values) // 2 * 2]])
    row = rows.pack_entry(x, 1, impl=impl)
    assert torch.equal(rows.pack_entry(rows.unpack_entry(row, x.shape[1], 1, impl=impl), 1, impl=impl), row)
    row = rows.pack_index(x, impl=impl)
    assert torch.equal(rows.pack_index(rows.unpack_index(row, x.shape[1], impl=impl), impl=impl), row)


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
def test_rows_do_not_depend_on_their_neighbours() -> None:
    kv_NC = wild(150, 96)
    together = rows.pack_entry(kv_NC, 32, impl="native")
    assert torch.equal(torch.cat([rows.pack_entry(row, 32, impl="native") for row in kv_NC.split(1)]), together)
    torch.set_num_threads(2)
    assert torch.equal(rows.pack_entry(kv_NC, 32, impl="native"), together)
    assert same_bits(rows.unpack_entry(together, 96, 32, impl="native"), simulated_entry(kv_NC, 32))
    torch.set_num_threads(1)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_bfloat16_in_and_out(impl: str) -> None:
    kv_NC = torch.randn(5, 80).bfloat16()
    row_NB = rows.pack_entry(kv_NC, 16, impl=impl)
    assert torch.equal(row_NB, rows.pack_entry(kv_NC.float(), 16, impl=impl))
    back = rows.unpack_entry(row_NB, 80, 16, torch.bfloat16, impl=impl)
    assert back.dtype == torch.bfloat16
    assert torch.equal(back.float(), rows.unpack_entry(row_NB, 80, 16, impl=impl))
    assert rows.unpack_index(rows.pack_index(kv_NC, impl=impl), 80, torch.bfloat16, impl=impl).dtype == torch.bfloat16


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="rope_dim <= dim, got 4 and 5"):
        rows.entry_bytes(4, 5)
    with pytest.raises(ValueError, match="even dim > 0, got 3"):
        rows.pack_index(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"unpack_entry needs uint8 rows \[N, 584\]"):
        rows.unpack_entry(torch.zeros(1, 583, dtype=torch.uint8), 512, 64)
    with pytest.raises(ValueError, match="pack_index needs float rows"):
        rows.pack_index(torch.zeros(1, 4, dtype=torch.uint8))
    with torch.enable_grad(), pytest.raises(ValueError, match="it records no gradient"):
        rows.pack_index(torch.ones(1, 4), impl="native")
