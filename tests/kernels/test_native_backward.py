"""Native backward passes against autograd through the references, on odd sizes; the same bits on one and two threads.

T tokens, H heads, C entry dim, S streams, D hidden size.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv4.kernels import compress, moe, native
from dsv4.kernels import hyper_connection as hc
from dsv4.kernels.norm import rms_norm
from dsv4.kernels.rope import apply_rope, rotation
from dsv4.kernels.sparse_attention import ChosenEntries, KeySet, PageTable, Prefix, sparse_attention
from dsv4.kernels.vocab_loss import vocab_loss
from dsv4.testing.graph import graph_is_freed

pytestmark = pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.why_not()}")

SIZES = [1, 31, 33, 127, 129]
Run = Callable[..., Any]


def gradients(run: Run, inputs: list[Tensor], impl: str | None) -> list[Tensor]:
    """Results of run(*inputs, impl), then the gradients of a fixed weighted sum of them."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    out = run(*leaves, impl)
    parts = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(1)
    total = sum((p * torch.randn(p.shape, generator=generator)).sum() for p in parts)
    grads = torch.autograd.grad(total, leaves, allow_unused=True)  # type: ignore[arg-type]
    return [p.detach() for p in parts] + [
        torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)
    ]


def check(run: Run, inputs: list[Tensor], atol: float = 2e-5, against: str = "reference", bits: bool = True) -> None:
    """Against the reference; with `bits` two threads give the bits of one."""
    found = gradients(run, inputs, None)
    for one, other in zip(found, gradients(run, inputs, against), strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=1e-4)
    if not bits:
        return
    torch.set_num_threads(2)
    for one, other in zip(found, gradients(run, inputs, None), strict=True):
        assert torch.equal(one, other)


def attention_case(tokens: int, kind: str, heads: int, dim: int) -> tuple[Run, list[Tensor]]:
    """Two sequences where there are tokens for two; windows of 9, one entry a token, pages of 4 in random order."""
    runs = (0, tokens) if tokens < 3 else (0, tokens // 3, tokens)
    row_T = torch.arange(tokens)
    start_T = torch.where(row_T < runs[1], 0, runs[1])
    window_T2 = torch.stack([torch.maximum(start_T, row_T - 8), row_T + 1], dim=1)
    visible_T, pages = row_T - start_T, -(-tokens // 4)
    first = torch.randperm(pages * (len(runs) - 1)).view(-1, pages) * 4
    table = PageTable(first, 4, (row_T >= runs[1]).long())
    keys = KeySet(window_T2, runs)
    if kind == "prefix":
        keys = KeySet(window_T2, runs, Prefix(visible_T, table, int(visible_T.max())))
    elif kind in ("chosen", "none chosen"):
        chosen = torch.stack(
            [torch.randperm(tokens)[:7] if tokens > 7 else torch.full((7,), -1) for _ in range(tokens)]
        )
        chosen = chosen.where(chosen < visible_T[:, None], -1) if kind == "chosen" else torch.full_like(chosen, -1)
        keys = KeySet(window_T2, runs, ChosenEntries(table.rows(chosen)))
    elif kind == "nothing seen":
        window_T2 = window_T2.clone()
        window_T2[1::2, 1] = window_T2[1::2, 0]  # every other query reads the sink alone
        keys = KeySet(window_T2, runs)
    shapes = ((tokens, heads, dim), (tokens, dim), (4 * pages * (len(runs) - 1), dim), (heads,))

    def run(q: Tensor, window: Tensor, entries: Tensor, sink: Tensor, impl: str | None) -> Tensor:
        return sparse_attention(q, window, entries, keys, sink, scale=0.5, impl=impl)

    return run, [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("kind", ["window", "prefix", "chosen", "none chosen", "nothing seen"])
@pytest.mark.parametrize("tokens", SIZES)
def test_attention(tokens: int, kind: str) -> None:
    heads, dim = (3, 20) if tokens % 2 else (1, 8)
    run, inputs = attention_case(tokens, kind, heads, dim)
    check(run, inputs, against="torch" if kind == "nothing seen" else "reference")


@pytest.mark.parametrize(("heads", "dim"), [(1, 7), (5, 40), (200, 8)])
def test_attention_of_any_shape(heads: int, dim: int) -> None:
    run, inputs = attention_case(40, "prefix", heads, dim)
    check(run, inputs)


@pytest.mark.parametrize("kind", ["window", "prefix", "chosen"])
def test_attention_never_touches_rows_that_nobody_reads(kind: str) -> None:
    run, inputs = attention_case(70, kind, 2, 8)
    read = gradients(run, inputs, "reference")[3].abs().sum(dim=-1) > 0
    inputs[2] = inputs[2].masked_fill(~read[:, None], float("nan"))
    found = gradients(run, inputs, None)
    for one in found:
        assert bool(one.isfinite().all())
    assert not found[3][~read].any()


def test_attention_in_bfloat16() -> None:
    run, inputs = attention_case(33, "chosen", 2, 16)
    narrow = [t.bfloat16() for t in inputs[:3]] + inputs[3:]
    wide = gradients(run, [t.float() for t in narrow], None)
    for one, other in zip(gradients(run, narrow, None), wide, strict=True):
        torch.testing.assert_close(one.float(), other, atol=0.1, rtol=0.05)


@pytest.mark.parametrize(("streams", "dim"), [(4, 16), (2, 5), (8, 3), (3, 40)])
@pytest.mark.parametrize("tokens", SIZES)
def test_hyper_connections(tokens: int, streams: int, dim: int) -> None:
    mixes, width = (2 + streams) * streams, streams * dim
    x = torch.randn(tokens, streams, dim)
    enter_inputs = [x, torch.randn(mixes, width) * width**-0.5, torch.randn(3), torch.randn(mixes)]
    settings = {"eps": 1e-6, "norm_eps": 1e-6}

    def enter(*t: Any) -> tuple[Tensor, ...]:
        return hc.enter(*t[:-1], iterations=20, impl=t[-1], **settings)

    def head(*t: Any) -> Tensor:
        return hc.collapse_head(*t[:-1], impl=t[-1], **settings)

    check(enter, enter_inputs, atol=1e-4)
    check(head, [x, torch.randn(streams, width) * width**-0.5, torch.randn(1), torch.randn(streams)], atol=1e-4)
    shapes = ((tokens, dim), (tokens, streams, dim), (tokens, streams), (tokens, streams, streams))
    check(lambda *t: hc.combine(*t), [torch.randn(shape) for shape in shapes])


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dim", [5, 8, 67])
@pytest.mark.parametrize("rows", SIZES)
def test_norm(rows: int, dim: int, weighted: bool) -> None:
    inputs = [torch.randn(rows, 2, dim), *([torch.rand(dim) + 0.5] if weighted else [])]
    check(lambda x, *rest: rms_norm(x, rest[0] if weighted else None, 1e-6, rest[-1]), inputs)


@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("shape", [(1, 8), (33, 3, 10), (129, 6)], ids=str)
def test_rope(shape: tuple[int, ...], inverse: bool) -> None:
    table = rotation(torch.tensor([1.0, 0.3, 0.01]), torch.arange(shape[0]) * 7)
    check(lambda x, impl: apply_rope(x, table, inverse=inverse, impl=impl), [torch.randn(shape)])


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("blocks", "rows", "dim"), [(0, 4, 5), (1, 4, 5), (9, 4, 33), (3, 17, 16)])
def test_pool(blocks: int, rows: int, dim: int, overlap: bool) -> None:
    own = torch.arange(blocks * rows).view(blocks, rows)
    previous = torch.where(own >= rows, own - rows, -1) if overlap else None
    shape = (blocks * rows + 2, dim * (1 + overlap))
    check(lambda kv, score, impl: compress.pool(kv, score, own, previous, impl=impl), [torch.randn(shape)] * 2)


def test_pool_of_halves_of_one_tensor_and_rows_used_twice() -> None:
    own = torch.tensor([[0, 1], [1, 2]])

    def run(rows: Tensor, impl: str | None) -> Tensor:
        return compress.pool(*rows.chunk(2, dim=1), own, None, impl=impl)

    check(run, [torch.randn(3, 22)])


@pytest.mark.parametrize("limit", [0.0, 0.7])
@pytest.mark.parametrize("rows", SIZES)
def test_clamped_swiglu(rows: int, limit: float) -> None:
    gate, up = torch.randn(rows, 19), torch.randn(rows, 19)
    gate[0, :3], up[0, :3] = 0.7, torch.tensor([0.7, -0.7, 2.0])  # on the limit itself the gradient passes
    check(lambda g, u, impl: moe.clamped_swiglu(g, u, limit, impl), [gate, up])


@pytest.mark.parametrize("tokens", SIZES)
def test_experts(tokens: int) -> None:
    experts, k, dim, inner = 5, 2, 24, 17
    ids = torch.rand(tokens, experts - 1).argsort(dim=1)[:, :k]  # the last expert gets nothing
    third = [*[(inner, dim)] * experts], [*[(dim, inner)] * experts], [*[(inner, dim)] * experts]
    inputs = [torch.randn(s) for s in ((tokens, dim), (tokens, k), *third[0], *third[1], *third[2])]

    def run(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        w1, w2, w3 = (list(rest[at : at + experts]) for at in range(0, 3 * experts, experts))
        return moe.routed_experts(x, ids, weight, w1, w2, w3, 1.0, None, rest[-1])

    for against in ("reference", "torch"):
        check(run, inputs, atol=1e-4, against=against)
    assert not gradients(run, inputs, None)[-1].any()


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("size", [3, 8, 61])
def test_vocab_loss(tokens: int, size: int) -> None:
    target, weight = torch.randint(size, (tokens,)), torch.rand(tokens)
    weight[::3] = 0
    inputs = [torch.randn(tokens, 9), torch.randn(size, 9) * 3]

    def run(x: Tensor, head: Tensor, impl: str | None) -> tuple[Tensor, ...]:
        out = vocab_loss(x, head, target, weight, total=3.0, chunk=20, impl=impl)
        return out.loss, out.loss_T, out.correct_T.float()

    check(run, inputs, bits=False)  # torch multiplies, and its products depend on the threads


def test_vocab_loss_of_huge_logits_and_foreign_targets() -> None:
    x, head = torch.full((2, 1), 1e4), torch.tensor([[1.0], [-1.0], [0.5]])
    loss = vocab_loss(x, head, torch.tensor([0, 1]), total=1.0, impl="native").loss_T
    torch.testing.assert_close(loss, torch.tensor([0.0, 2e4]))
    with pytest.raises(IndexError, match=r"targets must be in 0\.\.2"):
        vocab_loss(x, head, torch.tensor([0, 3]))


def test_graphs_of_native_nodes_are_freed() -> None:
    def run(mark: Callable[[Tensor], Tensor]) -> None:
        x = mark(torch.randn(9, 6).requires_grad_())
        table = rotation(torch.tensor([1.0]), torch.arange(9))
        pooled = compress.pool(x, x, torch.arange(9).view(3, 3), None)
        (apply_rope(x, table).sum() + moe.clamped_swiglu(x, x, 1.0).sum() + pooled.sum()).backward()

    assert graph_is_freed(run)
