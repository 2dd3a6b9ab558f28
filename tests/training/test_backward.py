"""Hand-written backward passes against autograd through the references, in fp64 and with native forward passes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv4.kernels import hyper_connection as hc
from dsv4.kernels import moe, native, quant
from dsv4.kernels.norm import rms_norm
from dsv4.kernels.sparse_attention import ChosenEntries, KeySet, PageTable, Prefix, sparse_attention
from dsv4.kernels.sparse_attention import torch as plain
from dsv4.model.inputs import FreshCache, Sequences
from dsv4.testing.graph import graph_is_freed

STREAMS = 4


def compare(run: Callable[..., Any], inputs: list[Tensor], fast: str | None, atol: float) -> None:
    """Values and gradients of run(*inputs, impl) with `fast` against "reference"."""
    results = []
    for impl in (fast, "reference"):
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = run(*leaves, impl)
        parts = out if isinstance(out, tuple) else (out,)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in parts]
        total = sum((p * w).sum() for p, w in zip(parts, weights, strict=True))
        results.append([*parts, *torch.autograd.grad(total, leaves)])  # type: ignore[arg-type]
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=atol, rtol=atol * 10)


def attention_inputs(lengths: list[int], kind: str, dtype: torch.dtype) -> tuple[list[Tensor], KeySet]:
    sequences = Sequences.pack(lengths, (4,))
    tokens, blocks = sequences.tokens, sequences.blocks[4]
    cache = FreshCache(sequences, 9)
    kv, entries = torch.randn(tokens, 6, dtype=dtype), torch.randn(sum(blocks.new_entries), 6, dtype=dtype)
    buffer = cache.append(kv, entries, blocks)
    assert buffer.entries is not None
    keys = KeySet(buffer.window_T2, sequences.borders)
    if kind == "prefix":
        keys = KeySet(
            buffer.window_T2, sequences.borders, Prefix(blocks.visible_T, buffer.entries.pages, blocks.longest)
        )
    elif kind == "paged":
        pages = PageTable(torch.arange(len(entries)).view(1, -1).expand(len(lengths), -1), 1, sequences.sequence_T)
        keys = KeySet(buffer.window_T2, sequences.borders, Prefix(blocks.visible_T, pages, blocks.longest))
    elif kind == "chosen":
        chosen = torch.full((tokens, 3), -1)
        for t, visible in enumerate(blocks.visible_T.tolist()):
            picked = torch.randperm(visible)[:3]
            chosen[t, : len(picked)] = picked
        keys = KeySet(buffer.window_T2, sequences.borders, ChosenEntries(buffer.entries.pages.rows(chosen)))
    return [torch.randn(tokens, 2, 6, dtype=dtype), kv, entries, torch.randn(2, dtype=dtype)], keys


@pytest.mark.parametrize("kind", ["window", "prefix", "paged", "chosen"])
@pytest.mark.parametrize("lengths", [[1], [3, 2], [70, 5, 130]], ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_attention(lengths: list[int], kind: str, dtype: torch.dtype, atol: float) -> None:
    inputs, keys = attention_inputs(lengths, kind, dtype)

    def run(q: Tensor, window: Tensor, entries: Tensor, sink: Tensor, impl: str | None) -> Tensor:
        # the zero keeps unread inputs in the graph
        return sparse_attention(q, window, entries, keys, sink, scale=0.6, impl=impl) + 0 * entries.sum()

    for fast in ("torch", None):
        compare(run, inputs, fast, atol)


def test_attention_gradcheck() -> None:
    inputs, keys = attention_inputs([5, 6], "prefix", torch.float64)

    def run(q: Tensor, window: Tensor, entries: Tensor, sink: Tensor) -> Tensor:
        return sparse_attention(q, window, entries, keys, sink, scale=0.6)

    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in inputs])


def test_attention_ignores_rows_that_nobody_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, keys = attention_inputs([40], "chosen", torch.float32)
    assert isinstance(keys.entries, ChosenEntries)
    rows_TK = keys.entries.rows_TK
    unseen = sorted(set(range(10)) - set(rows_TK[:8].flatten().tolist()))
    monkeypatch.setattr(plain, "_QUERIES", 8)
    inputs[2][unseen[-1]] = float("nan")
    q, window, entries, sink = (t.requires_grad_() for t in inputs)
    chosen = rows_TK.masked_fill(rows_TK == unseen[-1], -1)
    keys = KeySet(keys.window_T2, keys.runs, ChosenEntries(chosen))
    sparse_attention(q, window, entries, keys, sink, scale=1.0, impl="torch").square().sum().backward()
    for t in (q, window, sink):
        assert t.grad is not None
        assert bool(t.grad.isfinite().all())


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["fp64", "fp32"])
def test_hyper_connections(tokens: int, dtype: torch.dtype, atol: float) -> None:
    mixes = (2 + STREAMS) * STREAMS
    shapes = ((tokens, STREAMS, 8), (mixes, STREAMS * 8), (3,), (mixes,))
    inputs = [torch.randn(shape, dtype=dtype) for shape in shapes]

    def enter(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, impl: str | None) -> tuple[Tensor, ...]:
        return hc.enter(x, fn, scale, base, iterations=20, eps=1e-6, norm_eps=1e-6, impl=impl)

    others = [torch.randn(s, dtype=dtype) for s in ((tokens, 8), (tokens, STREAMS), (tokens, STREAMS, STREAMS))]
    for fast in ("torch", None):
        compare(enter, inputs, fast, atol)
        compare(
            lambda y, x, post, comb, impl: hc.combine(y, x, post, comb, impl),
            [others[0], inputs[0], *others[1:]],
            fast,
            atol,
        )


def test_hyper_connections_gradcheck() -> None:
    mixes = (2 + STREAMS) * STREAMS
    shapes = ((2, STREAMS, 3), (mixes, STREAMS * 3), (3,), (mixes,))
    inputs = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda *t: hc.enter(*t, iterations=20, eps=1e-6, norm_eps=1e-6), inputs)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", [(1, 8), (5, 3, 16)], ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)], ids=["fp32", "bf16"])
def test_norm(weighted: bool, shape: tuple[int, ...], dtype: torch.dtype, atol: float) -> None:
    inputs = [torch.randn(shape).to(dtype), *([torch.rand(shape[-1]) + 0.5] if weighted else [])]

    def run(x: Tensor, *rest: Any) -> Tensor:
        return rms_norm(x, rest[0] if weighted else None, 1e-6, rest[-1])

    for fast in ("torch", None):
        compare(run, inputs, fast, atol)


@pytest.mark.parametrize(("tokens", "limit"), [(1, 0.0), (9, 0.4), (40, 1.0)])
@pytest.mark.parametrize("cast", [None, quant.simulate_fp8], ids=["plain", "fp8"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_routed_experts(
    tokens: int, limit: float, cast: Callable[[Tensor], Tensor] | None, dtype: torch.dtype, atol: float
) -> None:
    experts, k, dim, inner = 6, 2, 8, 5
    ids = torch.rand(tokens, experts - 1).argsort(dim=1)[:, :k]  # the last expert gets nothing
    shapes = ((tokens, dim), (tokens, k), *[(inner, dim)] * 6, *[(dim, inner)] * 6, *[(inner, dim)] * 6)
    inputs = [torch.randn(shape, dtype=dtype) for shape in shapes]

    def run(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        w1, w2, w3, impl = rest[:6], rest[6:12], rest[12:18], rest[18]
        unused = sum(w.sum() for w in rest[:18]) * 0  # experts without tokens have no gradient otherwise
        return moe.routed_experts(x, ids, weight, w1, w2, w3, limit, cast, impl) + unused

    compare(run, inputs, None, atol)


def test_experts_without_tokens_get_no_gradient() -> None:
    w = [torch.randn(3, 3, requires_grad=True) for _ in range(9)]
    ids, weight = torch.tensor([[0, 2], [2, 0]]), torch.rand(2, 2)
    moe.routed_experts(torch.randn(2, 3), ids, weight, w[:3], w[3:6], w[6:], 1.0).sum().backward()
    assert [t.grad is None for t in w] == [False, True, False] * 3


def test_training_and_serving_compute_the_same_bits() -> None:
    if not native.available():
        pytest.skip("native kernels are not built here")
    (q, window, entries, sink), keys = attention_inputs([70, 5], "prefix", torch.float32)
    x, weight = torch.randn(9, 32), torch.rand(32)
    with torch.no_grad():
        served = sparse_attention(q, window, entries, keys, sink, scale=0.6), rms_norm(x, weight, 1e-6)
    trained = sparse_attention(q, window, entries, keys, sink, scale=0.6), rms_norm(x, weight, 1e-6)
    for one, other in zip(served, trained, strict=True):
        assert torch.equal(one, other)


def test_graphs_are_freed() -> None:
    def run(mark: Callable[[Tensor], Tensor]) -> None:
        (q, window, entries, sink), keys = attention_inputs([9], "chosen", torch.float32)
        sparse_attention(mark(q.requires_grad_()), window, entries, keys, sink, scale=1.0).sum().backward()

    assert graph_is_freed(run)
