"""Sparse attention: every implementation against a loop over queries written from the report (2.3, eq. 27)."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.sparse_attention import ChosenEntries, KeySet, PageTable, Prefix, sparse_attention
from dsv4.kernels.sparse_attention import torch as plain

TORCH = ["torch", "reference"]  # those that record gradients
NATIVE = pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="no native kernels here"))
IMPLEMENTATIONS = [NATIVE, *TORCH]
KINDS = ["window", "prefix", "chosen"]
WINDOW, RATIO, PER_PAGE, TOP_K = 20, 4, 3, 5
HEADS, DIM = 3, 8
SCALE = DIM**-0.5
NAN = float("nan")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2}
# new tokens per sequence, and tokens each has cached before
PACKINGS = {
    "1": ([1], [0]),
    "63": ([63], [0]),
    "64": ([64], [7]),
    "65": ([65], [0]),
    "129": ([129], [30]),
    "three": ([3, 70, 1], [0, 2, 41]),
    "decode": ([1, 1, 1, 1], [0, 1, 19, 50]),
}


def brute_force(case: dict[str, Any]) -> Tensor:
    """One query after another, in float64: gather its rows, one softmax with the sink in the denominator."""
    keys: KeySet = case["keys"]
    q_THC, window_WC, entries_MC = (case[name].double() for name in ("q", "window", "entries"))
    out_THC = torch.zeros_like(q_THC)
    for t in range(q_THC.shape[0]):
        first, last = keys.window_T2[t].tolist()
        rows = [window_WC[row] for row in range(first, last)]
        if isinstance(keys.entries, Prefix):
            own = keys.entries.pages.first_BP[keys.entries.pages.sequence_T[t]].tolist()
            for entry in range(int(keys.entries.visible_T[t])):
                rows.append(entries_MC[own[entry // PER_PAGE] + entry % PER_PAGE])
        if isinstance(keys.entries, ChosenEntries):
            rows += [entries_MC[row] for row in keys.entries.rows_TK[t].tolist() if row >= 0]
        kv_RC = torch.stack(rows)
        for h in range(q_THC.shape[1]):
            weight_R = (SCALE * (kv_RC @ q_THC[t, h])).exp()
            out_THC[t, h] = weight_R @ kv_RC / (weight_R.sum() + case["sink"][h].double().exp())
    return out_THC


def make(kind: str, lengths: list[int], cached: list[int], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Random operands. Pages lie in random order, page 0 belongs to nobody, and every row that no query may read
    (page 0, entries not yet visible, gaps between the windows) is NaN."""
    spans = list(zip(lengths, cached, strict=True))
    bounds, rows, visible, sequence = [], 1, [], []
    for b, (new, old) in enumerate(spans):
        past = min(old, WINDOW - 1)
        bounds += [[max(rows, rows + past + i + 1 - WINDOW), rows + past + i + 1] for i in range(new)]
        rows += past + new + 1
        has_entries = len(lengths) == 1 or b != 1
        visible += [(old + i + 1) // RATIO if has_entries else 0 for i in range(new)]
        sequence += [b] * new
    width = max(1, -(-max(visible) // PER_PAGE))
    first_BP = (1 + torch.randperm(len(lengths) * width).view(-1, width)) * PER_PAGE
    pages = PageTable(first_BP, PER_PAGE, torch.tensor(sequence))
    window_WC = torch.full((rows, DIM), NAN)
    for first, last in bounds:
        window_WC[first:last] = torch.randn(last - first, DIM)
    total = (1 + len(lengths) * width) * PER_PAGE
    entries_MC = torch.full((total, DIM), NAN)
    for seen, b in zip(visible, sequence, strict=True):
        at = [int(first_BP[b, j // PER_PAGE]) + j % PER_PAGE for j in range(seen)]
        entries_MC[at] = torch.randn(seen, DIM)
    keys = KeySet(torch.tensor(bounds), (0, *torch.tensor(lengths).cumsum(0).tolist()))
    if kind == "prefix":
        keys = replace(keys, entries=Prefix(torch.tensor(visible), pages, max(visible)))
    elif kind == "chosen":
        chosen = torch.full((len(visible), TOP_K), -1)
        for t, seen in enumerate(visible):
            places, count = torch.randperm(TOP_K), min(seen, TOP_K)
            chosen[t, places[:count]] = torch.randperm(seen)[:count]
        keys = replace(keys, entries=ChosenEntries(pages.rows(chosen)))
    q_THC, sink_H = torch.randn(len(visible), HEADS, DIM) * 2, torch.randn(HEADS)
    tensors = {"q": q_THC, "window": window_WC, "entries": entries_MC}
    return {**{name: x.to(dtype) for name, x in tensors.items()}, "sink": sink_H, "keys": keys}


def attend(case: dict[str, Any], impl: str | None) -> Tensor:
    with torch.set_grad_enabled(torch.is_grad_enabled() and impl != "native"):
        return sparse_attention(
            case["q"], case["window"], case["entries"], case["keys"], case["sink"], scale=SCALE, impl=impl
        )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", PACKINGS)
def test_equals_the_loop_and_never_reads_what_is_not_visible(packing: str, kind: str, impl: str) -> None:
    case = make(kind, *PACKINGS[packing])
    inputs = {name: x.clone() for name, x in case.items() if isinstance(x, Tensor)}
    torch.testing.assert_close(attend(case, impl).double(), brute_force(case), atol=3e-6, rtol=0)
    for name, before in inputs.items():
        torch.testing.assert_close(case[name], before, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_dtype_keeps_its_precision(dtype: torch.dtype, kind: str, impl: str) -> None:
    if impl == "native" and dtype == torch.float64:
        pytest.skip("computes in float32")
    case = make(kind, *PACKINGS["three"], dtype=dtype)
    out = attend(case, impl)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), brute_force(case), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_many_small_groups_equal_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(kind, *PACKINGS["129"])
    together = attend(case, "torch")
    monkeypatch.setattr(plain, "_VALUES", 1)
    monkeypatch.setattr(plain, "_QUERIES", 7)
    torch.testing.assert_close(attend(case, "torch"), together, atol=3e-6, rtol=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_in_the_batch_change_nothing(kind: str, impl: str) -> None:
    case = make(kind, *PACKINGS["three"])
    keys: KeySet = case["keys"]
    together = attend(case, impl)
    for first, last in pairwise(keys.runs):
        part = slice(first, last)
        alone = KeySet(keys.window_T2[part], (0, last - first))
        if isinstance(keys.entries, Prefix):
            own = replace(keys.entries.pages, sequence_T=keys.entries.pages.sequence_T[part])
            seen = keys.entries.visible_T[part]
            alone = replace(alone, entries=Prefix(seen, own, int(seen.max())))
        if isinstance(keys.entries, ChosenEntries):
            alone = replace(alone, entries=ChosenEntries(keys.entries.rows_TK[part]))
        out = attend({**case, "q": case["q"][part], "keys": alone}, impl)
        torch.testing.assert_close(out, together[part], atol=1e-6, rtol=0)


@pytest.mark.parametrize("impl", TORCH)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_queries_rows_and_sink(kind: str, impl: str) -> None:
    case = make(kind, [3, 2], [6, 2], torch.float64)
    names = ("q", "window", "entries", "sink")
    # NOTE: numeric differences cannot pass through NaN; poison has its own test below
    inputs = [case[name].double().nan_to_num(0.5).requires_grad_() for name in names]

    def run(*tensors: Tensor) -> Tensor:
        return attend({**case, **dict(zip(names, tensors, strict=True))}, impl)

    assert torch.autograd.gradcheck(run, inputs, check_batched_grad=False, check_undefined_grad=False)


@pytest.mark.parametrize("impl", TORCH)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_stay_finite_beside_poisoned_rows(kind: str, impl: str) -> None:
    case = make(kind, *PACKINGS["three"])
    leaves = {name: case[name].clone().requires_grad_() for name in ("q", "window", "entries", "sink")}
    attend({**case, **leaves}, impl).square().sum().backward()
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            assert leaf.grad.isfinite().all(), name
            unseen = case[name].isnan()
            assert not leaf.grad[unseen].any(), name


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_large_sink_silences_and_none_is_plain_softmax(impl: str) -> None:
    case = make("window", [9], [0])
    assert attend({**case, "sink": torch.full((HEADS,), 1e4)}, impl).abs().max() < 1e-6
    plain = attend({**case, "sink": torch.full((HEADS,), float("-inf"))}, impl)
    torch.testing.assert_close(plain[0], case["window"][1].expand(HEADS, DIM), atol=1e-6, rtol=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("entries", [None, torch.empty(0, DIM)], ids=["none", "empty"])
def test_no_entries_is_the_window_alone(entries: Tensor | None, impl: str) -> None:
    case = make("window", [70], [0])
    pages = PageTable(torch.zeros(1, 1, dtype=torch.int64), 1, torch.zeros(70, dtype=torch.int64))
    nothing = torch.zeros(70, dtype=torch.int64)
    keys = replace(case["keys"], entries=Prefix(nothing, pages, 0))
    out = attend({**case, "entries": entries, "keys": keys}, impl)
    torch.testing.assert_close(out, attend(case, impl), atol=0, rtol=0)


def test_an_unknown_implementation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"sparse_attention: impl must be one of native, torch, reference, got 'nope'"):
        attend(make("window", [1], [0]), "nope")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_recorded_outputs(reference_data: Path, impl: str) -> None:
    """The recording lists all rows of a query; ours are the same rows, the first of each as its window."""
    ops = load_file(reference_data / "reference" / "ops.safetensors")
    batch, queries, heads, dim = ops["attn.q"].shape
    rows_BTK = ops["attn.idx"].long()
    shift_B11 = torch.arange(batch)[:, None, None] * ops["attn.kv"].shape[1]
    rows_TK = torch.where(rows_BTK < 0, -1, rows_BTK + shift_B11).flatten(0, 1)
    assert (rows_TK[:, 0] >= 0).all()
    assert (rows_TK < 0).any()
    kv_MC = ops["attn.kv"].float().flatten(0, 1)
    row_T = torch.arange(batch * queries)
    keys = KeySet(
        torch.stack([row_T, row_T + 1], dim=1),
        tuple(range(0, batch * queries + 1, queries)),
        ChosenEntries(rows_TK[:, 1:]),
    )
    run = torch.no_grad()(partial(sparse_attention, scale=dim**-0.5, impl=impl))
    out = run(ops["attn.q"].float().flatten(0, 1), kv_MC[rows_TK[:, 0]], kv_MC, keys, ops["attn.sink"])
    torch.testing.assert_close(out.view(batch, queries, heads, dim), ops["attn.o_fp32"], atol=2e-6, rtol=0)
