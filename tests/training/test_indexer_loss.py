"""The indexer's KL against its definition, in blocks, for both choices; recall (report 2.3.1)."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.indexer.reference import scores
from dsv4.kernels.indexer_loss import IndexedAttention, attention_target, indexer_kl, reference
from dsv4.kernels.sparse_attention import KeySet, PageTable
from dsv4.training.indexer_loss import Recall, recall

RATIO, WINDOW = 4, 6
FLOATS = ("index_TJI", "weight_TJ", "index_MI", "query_THC", "window_WC", "entries_MC", "sink_H")


def make_seen(lengths: list[int], k: int | None, dtype: torch.dtype = torch.float64) -> IndexedAttention:
    tokens, heads, dim = sum(lengths), 3, 8
    positions = torch.cat([torch.arange(n) for n in lengths])
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    counts = [n // RATIO for n in lengths]
    first = torch.tensor([sum(counts[:i]) for i in range(len(counts))])[:, None]
    row = torch.arange(tokens)
    window = torch.stack([torch.maximum(row - positions, row - WINDOW + 1), row + 1], dim=1)
    visible = (positions + 1) // RATIO
    runs = (0, *torch.tensor(lengths).cumsum(0).tolist())
    pages = PageTable(first, max(1, *counts), sequence)
    chosen = None
    if k is not None:
        chosen = torch.full((tokens, k), -1)
        for t in range(tokens):
            picked = torch.randperm(int(visible[t]))[:k].sort().values
            chosen[t, : len(picked)] = picked
    q, w, keys = (torch.randn(s, dtype=dtype) for s in ((tokens, 2, 4), (tokens, 2), (sum(counts), 4)))
    return IndexedAttention(
        layer=1,
        index_TJI=q.requires_grad_(),
        weight_TJ=w.requires_grad_(),
        index_MI=keys.requires_grad_(),
        pages=pages,
        visible_T=visible,
        chosen_TK=chosen,
        query_THC=torch.randn(tokens, heads, dim, dtype=dtype),
        window_WC=torch.randn(tokens, dim, dtype=dtype),
        entries_MC=torch.randn(sum(counts), dim, dtype=dtype),
        keys=KeySet(window, runs),
        sink_H=torch.randn(heads, dtype=dtype),
        scale=0.7,
    )


def by_definition(seen: IndexedAttention) -> Tensor:
    """Query by query, all tensors in sight."""
    total = torch.zeros((), dtype=seen.index_TJI.dtype)
    for t in range(len(seen.visible_T)):
        first = int(seen.pages.first_BP[seen.pages.sequence_T[t], 0])
        considered = range(int(seen.visible_T[t])) if seen.chosen_TK is None else seen.chosen_TK[t].tolist()
        rows = [first + s for s in considered if s >= 0]
        if not rows:
            continue
        near = seen.window_WC[slice(*seen.keys.window_T2[t].tolist())]
        keys = torch.cat([near, seen.entries_MC[rows]])
        logits = torch.cat([seen.query_THC[t] @ keys.T * seen.scale, seen.sink_H[:, None]], dim=1)
        p = logits.softmax(1)[:, len(near) : -1].sum(0)
        p = p / p.sum()
        score = torch.stack([(seen.weight_TJ[t] * (seen.index_TJI[t] @ seen.index_MI[r]).relu()).sum() for r in rows])
        total = total + (p * (p.log() - score.log_softmax(0))).sum()
    return total


@pytest.mark.parametrize("k", [None, 1, 3])
@pytest.mark.parametrize("lengths", [[30], [3, 21, 1, 8]], ids=str)
@pytest.mark.parametrize("values", [1, 200, 1 << 20])
@pytest.mark.parametrize("gather_above", [0, 100])
def test_value_and_gradients(
    lengths: list[int], k: int | None, values: int, gather_above: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_VALUES", values)  # 1: a query at a time
    monkeypatch.setattr(reference, "_GATHER_ABOVE", gather_above)
    seen = make_seen(lengths, k)
    leaves = [seen.index_TJI, seen.weight_TJ, seen.index_MI]
    got, wanted = indexer_kl(seen), by_definition(seen)
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)
    for one, other in zip(torch.autograd.grad(got * 2, leaves), torch.autograd.grad(wanted * 2, leaves), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


@pytest.mark.skipif(not native.available(), reason=native.why_not())
@pytest.mark.parametrize("k", [None, 1, 3, 40])
@pytest.mark.parametrize("lengths", [[1], [30], [3, 21, 1, 8], [300, 70]], ids=str)
def test_the_native_kernel_gives_the_values_of_double_precision(lengths: list[int], k: int | None) -> None:
    exact = make_seen(lengths, k)
    single = {name: getattr(exact, name).detach().float() for name in FLOATS}
    leaves = [single[name].requires_grad_() for name in ("index_TJI", "weight_TJ", "index_MI")]
    wanted = by_definition(exact)
    got = indexer_kl(replace(exact, **single), impl="native")
    torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=1e-5)
    if not wanted.requires_grad:
        assert all(not grad.any() for grad in torch.autograd.grad(got, leaves))
        return
    others = torch.autograd.grad(wanted * 2, [exact.index_TJI, exact.weight_TJ, exact.index_MI])
    for one, other in zip(torch.autograd.grad(got * 2, leaves), others, strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-5, rtol=1e-4)


@pytest.mark.skipif(not native.available(), reason=native.why_not())
@pytest.mark.parametrize("k", [None, 3])
def test_threads_change_no_bit(k: int | None) -> None:
    seen = make_seen([300, 70], k, torch.float32)
    leaves = [seen.index_TJI, seen.weight_TJ, seen.index_MI]
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        loss = indexer_kl(seen, impl="native")
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    assert all(torch.equal(one, other) for more in found[1:] for one, other in zip(found[0], more, strict=True))


@pytest.mark.skipif(not native.available(), reason=native.why_not())
def test_bfloat16_rows_are_those_numbers() -> None:
    seen = make_seen([60], 5, torch.float32)
    rounded = {name: getattr(seen, name).detach().bfloat16() for name in FLOATS}
    one = indexer_kl(replace(seen, **rounded), impl="native")
    other = indexer_kl(replace(seen, **{name: value.float() for name, value in rounded.items()}), impl="native")
    assert torch.equal(one, other)
    assert one.dtype == torch.float32


def test_scores_that_match_the_attention_cost_nothing() -> None:
    seen = make_seen([40], None)
    assert indexer_kl(seen).item() > 1
    # one index head whose dot product is the log of the target: softmax gives the target back
    target = torch.zeros(40, 10, dtype=torch.float64)
    for t in range(3, 40):
        visible = int(seen.visible_T[t])
        rows, everything = torch.arange(visible), torch.ones(1, visible, dtype=torch.bool)
        target[t, :visible] = attention_target(torch.tensor([t]), rows, everything, seen)[0]
    log = (target.clamp(min=1e-300).log() + 50).clamp(min=0)
    perfect = replace(
        seen,
        index_TJI=log[:, None].requires_grad_(),
        weight_TJ=torch.ones(40, 1, dtype=torch.float64, requires_grad=True),
        index_MI=torch.eye(10, dtype=torch.float64, requires_grad=True),
    )
    assert indexer_kl(perfect).item() == pytest.approx(0, abs=1e-9)
    assert recall(perfect, 3).entries == 1
    assert recall(perfect, 3).mass == pytest.approx(1)


def test_sequences_too_short_for_an_entry_cost_nothing() -> None:
    seen = make_seen([3, 2], None)
    loss = indexer_kl(seen)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, seen.index_TJI)[0].abs().max() == 0


def test_recall_counts_what_the_choice_found() -> None:
    seen = make_seen([60], 3)
    found = recall(seen, 3, sample=1000)
    shares, masses = [], []
    for t in (seen.visible_T > 3).nonzero().flatten().tolist():
        visible = int(seen.visible_T[t])
        everything = torch.ones(1, visible, dtype=torch.bool)
        p = attention_target(torch.tensor([t]), torch.arange(visible), everything, seen)[0]
        best, chosen = set(p.topk(3).indices.tolist()), set(seen.chosen_TK[t].tolist())
        shares.append(len(best & chosen) / 3)
        masses.append(float(p[list(chosen)].sum() / p[list(best)].sum()))
    assert found.queries == len(shares)
    assert found.entries == pytest.approx(sum(shares) / len(shares))
    assert found.mass == pytest.approx(sum(masses) / len(masses))
    assert recall(seen, 15).queries == 0


def test_recalls_are_averaged_by_what_they_saw() -> None:
    assert Recall.mean([]) == Recall.mean([Recall(1.0, 1.0, 0)]) == Recall(1.0, 1.0, 0)
    assert Recall.mean([Recall(0.5, 0.75, 1), Recall(1.0, 1.0, 0), Recall(1.0, 0.25, 3)]) == Recall(0.875, 0.375, 4)


def test_recall_of_a_dense_layer_asks_the_indexer() -> None:
    seen = make_seen([60], None)
    chosen = torch.full((60, 3), -1)
    for t in (seen.visible_T > 3).nonzero().flatten().tolist():
        score = scores(seen.index_TJI[t : t + 1], seen.weight_TJ[t : t + 1], seen.index_MI[: int(seen.visible_T[t])])
        chosen[t] = score[0].topk(3).indices
    assert recall(seen, 3, 99) == recall(replace(seen, chosen_TK=chosen), 3, 99)
