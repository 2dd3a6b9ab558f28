"""Native mixture of experts: routing and a whole layer of experts, against the reference and in any company."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dsv4.kernels import moe, native, quant
from dsv4.kernels.moe import ExpertWeights

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())
FORMS = [
    ("float32", "float32", torch.float32),
    ("float32", None, torch.float32),
    ("bfloat16", "bfloat16", torch.bfloat16),
    ("fp4", "fp8", torch.float32),
    ("fp4", "fp8", torch.bfloat16),
    ("fp8", "fp8", torch.bfloat16),
    ("fp8-float32", None, torch.float32),
]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


def stored(kind: str, rows: int, columns: int) -> tuple[Tensor, Tensor | None]:
    w_NK = torch.randn(rows, columns) / columns**0.5
    if kind == "fp4":
        return quant.quantize_fp4_weight(w_NK)
    if kind.startswith("fp8"):
        return quant.quantize_fp8_weight(w_NK, "float32" if kind == "fp8-float32" else "ue8m0")
    return w_NK.to(getattr(torch, kind)), None


def layer(kind: str, shared: str | None, experts: int, dim: int, inner: int, limit: float = 1.5) -> ExpertWeights:
    kinds = [kind] * experts + ([shared] if shared else [])
    parts = [[stored(k, *shape) for k in kinds] for shape in ((inner, dim), (dim, inner), (inner, dim))]
    weights, scales = ([[pair[i] for pair in part] for part in parts] for i in (0, 1))
    return ExpertWeights(*weights, *scales, limit=limit, shared=shared is not None)


def tokens(count: int, experts: int, k: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.rand(count, experts).argsort(1)[:, :k]
    return torch.randn(count, dim).to(dtype), ids, torch.rand(count, k)


@pytest.mark.parametrize(("kind", "shared", "dtype"), FORMS)
@pytest.mark.parametrize(
    ("count", "experts", "k", "dim", "inner"),
    [(0, 3, 2, 32, 32), (1, 4, 2, 96, 64), (7, 5, 3, 160, 128), (120, 6, 2, 64, 96), (230, 2, 1, 32, 160)],
)
def test_expert_mlp(
    kind: str, shared: str | None, dtype: torch.dtype, count: int, experts: int, k: int, dim: int, inner: int
) -> None:
    weights = layer(kind, shared, experts, dim, inner)
    inputs = tokens(count, experts, k, dim, dtype)
    got, wanted = (moe.expert_mlp(*inputs, weights, impl) for impl in ("native", "reference"))
    assert got.dtype == torch.float32
    assert got.shape == (count, dim)
    # in bfloat16 a projection that lies at a rounding border goes either way
    # and FP4 products round the smallest digits of their activations
    atol = 1e-2 if dtype == torch.bfloat16 else 1e-4 if kind == "fp4" else 2e-6
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("kind", "shared", "dtype"), FORMS)
def test_a_token_does_not_depend_on_its_neighbours(kind: str, shared: str | None, dtype: torch.dtype) -> None:
    weights = layer(kind, shared, 5, 96, 160)
    inputs = tokens(150, 5, 3, 96, dtype)
    together = moe.expert_mlp(*inputs, weights, "native")
    for sizes in ([1] * 150, [3, 4, 5, 31, 107]):
        parts = zip(*(t.split(sizes) for t in inputs), strict=True)
        assert torch.equal(torch.cat([moe.expert_mlp(*part, weights, "native") for part in parts]), together)
    try:
        torch.set_num_threads(2)
        assert torch.equal(moe.expert_mlp(*inputs, weights, "native"), together)
        assert torch.equal(moe.expert_mlp(*(t[:1] for t in inputs), weights, "native"), together[:1])
    finally:
        torch.set_num_threads(1)


def test_experts_are_added_in_the_order_of_the_ids_and_the_shared_one_last() -> None:
    weights = layer("float32", "float32", 4, 16, 8)
    x, ids, weight = tokens(20, 4, 3, 16, torch.float32)
    single = ExpertWeights(*([part[-1]] for part in (weights.w1, weights.w2, weights.w3)), [None], [None], [None], 1.5)
    first = torch.zeros(20, 1, dtype=torch.int64)
    wanted = None
    routed = ExpertWeights(*(part[:-1] for part in (weights.w1, weights.w2, weights.w3)), *([[None] * 4] * 3), 1.5)
    for k in range(3):
        part = moe.expert_mlp(x, ids[:, k : k + 1], weight[:, k : k + 1], routed, "native")
        wanted = part if wanted is None else wanted + part
    wanted = wanted + moe.expert_mlp(x, first, torch.ones(20, 1), single, "native")
    assert torch.equal(moe.expert_mlp(x, ids, weight, weights, "native"), wanted)


def test_one_expert_takes_all_and_others_hold_nan() -> None:
    weights = layer("float32", None, 3, 32, 32)
    weights.w1[0].fill_(float("nan"))
    weights.w2[2].fill_(float("nan"))
    x = torch.randn(100, 32)
    out = moe.expert_mlp(x, torch.ones(100, 1, dtype=torch.int64), torch.ones(100, 1), weights, "native")
    assert out.isfinite().all()


def test_ids_that_name_no_expert_are_refused() -> None:
    weights = layer("float32", "float32", 3, 32, 32)
    for bad in (-1, -2, 3):
        for impl in ("native", "reference"):
            with pytest.raises(IndexError, match=r"0\.\.2"):
                moe.expert_mlp(torch.randn(1, 32), torch.tensor([[0, bad]]), torch.ones(1, 2), weights, impl)


def test_where_it_cannot_run() -> None:
    mixed = layer("bfloat16", "bfloat16", 2, 32, 32)
    inputs = tokens(3, 2, 1, 32, torch.float32)
    moe.expert_mlp(*inputs, mixed)
    with pytest.raises(ValueError, match="cannot take"):
        moe.expert_mlp(*inputs, mixed, "native")
    with pytest.raises(ValueError, match="entry per expert"):
        ExpertWeights([], [], [], [], [], [])


def test_affinity_and_swiglu() -> None:
    x = torch.cat([torch.linspace(-150, 150, 3001), torch.randn(77), torch.tensor([float("inf"), float("nan")])])
    torch.testing.assert_close(
        moe.affinity(x, "native"), moe.affinity(x, "reference"), rtol=1e-6, atol=1e-22, equal_nan=True
    )
    gate, up = torch.randn(1003) * 30, torch.randn(1003) * 30
    gate[0], up[1] = float("nan"), float("nan")
    for limit in (0.0, 7.0):
        torch.testing.assert_close(
            moe.clamped_swiglu(gate, up, limit, "native"),
            moe.clamped_swiglu(gate, up, limit, "reference"),
            rtol=1e-6,
            atol=1e-12,
            equal_nan=True,
        )


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (3, 3), (37, 6), (256, 8)])
def test_the_same_experts_are_chosen(experts: int, k: int) -> None:
    score = torch.randn(50, experts).mul(3).round()  # many equal
    bias = torch.randn(experts).round()
    ids = moe.choose_experts(score, bias, k, "native")
    assert torch.equal(ids, moe.choose_experts(score, bias, k, "reference"))
    score = score.abs() + 1
    torch.testing.assert_close(
        moe.expert_weights(score, ids, 2.5, "native"), moe.expert_weights(score, ids, 2.5, "reference")
    )
    assert torch.equal(moe.choose_experts(score[7:8], bias, k), moe.choose_experts(score, bias, k)[7:8])
