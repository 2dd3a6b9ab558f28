"""The native indexer kernel: against scores in float64, ties, and that a query's choice is its own.

T queries, N indexer heads, I indexer dim, M buffer rows, S entries, K entries kept.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv4.kernels import native, quant, rows
from dsv4.kernels.indexer import index_topk
from dsv4.kernels.sparse_attention import PageTable

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="no native kernels here"),
    pytest.mark.usefixtures("without_gradients"),
]
STORAGE = ["float32", "bfloat16", "packed"]
SIZES = [1, 31, 32, 33, 127, 128, 129]


@dataclass(frozen=True)
class Case:
    q_TJI: Tensor
    weight_TJ: Tensor
    keys_MI: Tensor
    pages: PageTable
    visible_T: Tensor
    runs: tuple[int, ...]

    def run(self, k: int, impl: str = "native", part: slice | None = None) -> Tensor:
        """All queries, or a part of them in a call of its own."""
        case = self if part is None else self.part(part)
        operands = case.q_TJI, case.weight_TJ, case.keys_MI, case.pages, case.visible_T
        return index_topk(*operands, int(self.visible_T.max()), k, runs=case.runs, impl=impl)

    def part(self, part: slice) -> "Case":
        first, last = part.start, part.stop
        borders = sorted({first, last, *(border for border in self.runs if first < border < last)})
        pages = replace(self.pages, sequence_T=self.pages.sequence_T[part])
        runs = tuple(border - first for border in borders)
        return Case(self.q_TJI[part], self.weight_TJ[part], self.keys_MI, pages, self.visible_T[part], runs)


def make(
    lengths: list[int],
    cached: list[int],
    heads: int,
    dim: int,
    storage: str = "float32",
    levels: int = 0,
    ratio: int = 4,
    per_page: int = 7,
    shuffled: bool = True,
) -> Case:
    """Sequences of new and cached tokens; small whole numbers if `levels` is given. What nobody sees is NaN."""
    visible = [(old + i + 1) // ratio for new, old in zip(lengths, cached, strict=True) for i in range(new)]
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    width = max(1, -(-max(visible) // per_page))
    order = torch.randperm if shuffled else torch.arange
    first_BP = (1 + order(len(lengths) * width)).view(-1, width) * per_page
    pages = PageTable(first_BP, per_page, sequence)
    shapes = (len(visible), heads, dim), (len(visible), heads), ((1 + len(lengths) * width) * per_page, dim)
    draw = (lambda shape: torch.randint(-levels, levels + 1, shape).float()) if levels else torch.randn
    q_TJI, weight_TJ, keys_MI = (draw(shape) for shape in shapes)
    seen_TS = torch.arange(max(visible)).expand(len(visible), -1)
    row_TS = pages.rows(torch.where(seen_TS < torch.tensor(visible)[:, None], seen_TS, -1))
    hidden_M = torch.ones(len(keys_MI), dtype=torch.bool)
    hidden_M[row_TS[row_TS >= 0]] = False
    stored = rows.pack_index(keys_MI) if storage == "packed" else keys_MI.to(getattr(torch, storage))
    stored[hidden_M] = 255 if storage == "packed" else float("nan")
    runs = (0, *torch.tensor(lengths).cumsum(0).tolist())
    return Case(q_TJI, weight_TJ, stored, pages, torch.tensor(visible), runs)


def as_fp4(q_TJI: Tensor) -> Tensor:
    """Queries as release numerics give them; on packed keys these take a path of their own."""
    dim = q_TJI.shape[2]
    return quant.simulate_fp4(torch.nn.functional.pad(q_TJI, (0, -dim % 32)))[..., :dim]


def scores(case: Case) -> Tensor:
    """Scores in float64 [T, S], -inf where a query does not see the entry."""
    keys_MI, dim = case.keys_MI, case.q_TJI.shape[2]
    keys_MI = (rows.unpack_index(keys_MI, dim) if keys_MI.dtype == torch.uint8 else keys_MI).double()
    entry_TS = torch.arange(int(case.visible_T.max())).expand(len(case.visible_T), -1)
    seen_TS = entry_TS < case.visible_T[:, None]
    key_TSI = keys_MI[case.pages.rows(torch.where(seen_TS, entry_TS, -1)).clamp(min=0)]
    dot_TNS = torch.einsum("tni,tsi->tns", case.q_TJI.double(), key_TSI).relu()
    return torch.einsum("tns,tn->ts", dot_TNS, case.weight_TJ.double()).masked_fill(~seen_TS, float("-inf"))


def best(score_TS: Tensor, visible_T: Tensor, k: int) -> Tensor:
    """The k highest scores, older entries first among equals; ascending, -1 in the places left over."""
    order_TS = score_TS.sort(dim=1, descending=True, stable=True).indices[:, :k]
    count_T1 = visible_T.clamp(max=k)[:, None]
    kept_TK = torch.where(torch.arange(order_TS.shape[1]) < count_T1, order_TS, score_TS.shape[1])
    kept_TK = kept_TK.sort(dim=1).values
    return torch.where(kept_TK == score_TS.shape[1], -1, kept_TK)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("k", [1, 5, 31, 100, 1000])
@pytest.mark.parametrize(("heads", "dim"), [(1, 2), (16, 64), (3, 30), (5, 34), (7, 126), (64, 128)])
def test_whole_numbers_give_the_exact_choice(heads: int, dim: int, k: int, storage: str) -> None:
    """Scores of small whole numbers have no rounding, and many ties."""
    case = make([33, 1, 5], [400, 1600, 0], heads, dim, storage, levels=1)
    chosen_TK = case.run(k)
    assert chosen_TK.dtype == torch.int64
    assert torch.equal(chosen_TK, best(scores(case), case.visible_T, k))


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("entries", SIZES)
def test_every_number_of_entries(entries: int, k: int) -> None:
    case = make([4], [entries - 1], 2, 4, levels=2, ratio=1)
    assert torch.equal(case.run(k), best(scores(case), case.visible_T, k))


@pytest.mark.parametrize("fp4_queries", [False, True])
@pytest.mark.parametrize("storage", STORAGE)
def test_what_is_chosen_is_no_worse_than_what_is_not(storage: str, fp4_queries: bool) -> None:
    case = make([65, 3], [3000, 900], 16, 64, storage)
    if fp4_queries:
        case = replace(case, q_TJI=as_fp4(case.q_TJI))
    k = 128
    score_TS, chosen_TK = scores(case), case.run(k)
    assert (chosen_TK >= 0).all()
    assert (chosen_TK.diff(dim=1) > 0).all()
    assert (chosen_TK < case.visible_T[:, None]).all()
    kept_TS = torch.zeros_like(score_TS, dtype=torch.bool).scatter_(1, chosen_TK, True)
    worst_T = score_TS.masked_fill(~kept_TS, float("inf")).amin(dim=1)
    left_T = score_TS.masked_fill(kept_TS, float("-inf")).amax(dim=1)
    assert (worst_T >= left_T - 2e-6 * score_TS[kept_TS].abs().max()).all()


@pytest.mark.parametrize("dim", [2, 30, 32])
def test_packed_keys_of_all_sizes(dim: int) -> None:
    """One head and one block: fp4 queries score without rounding, from the smallest scales to the largest."""
    case = make([9], [700], 1, dim, ratio=1)
    size_M = 2.0 ** torch.randint(-60, 60, (len(case.keys_MI), 1))
    q_TJI = as_fp4(case.q_TJI * 2.0 ** torch.randint(-40, 40, (9, 1, 1)))
    keys_MI = rows.pack_index(case.keys_MI.nan_to_num() * size_M)
    case = replace(case, q_TJI=q_TJI, keys_MI=keys_MI, weight_TJ=torch.ones_like(case.weight_TJ))
    assert torch.equal(case.run(50), best(scores(case), case.visible_T, 50))


@pytest.mark.parametrize("storage", ["float32", "packed"])
@pytest.mark.parametrize(("heads", "dim"), [(16, 64), (3, 10), (64, 128)])
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_the_choice_does_not_depend_on_the_batch_the_cuts_or_the_threads(
    data: st.DataObject, heads: int, dim: int, storage: str
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=3))
    cached = [data.draw(st.integers(0, 1500)) for _ in lengths]
    k = data.draw(st.sampled_from([1, 7, 64, 300]))
    case, tokens = make(lengths, cached, heads, dim, storage), sum(lengths)
    exact_T = torch.rand(tokens) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    case = replace(case, q_TJI=torch.where(exact_T[:, None, None], as_fp4(case.q_TJI), case.q_TJI))
    together = case.run(k)
    borders = sorted({0, tokens, *data.draw(st.lists(st.integers(0, tokens), max_size=4))})
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(case.run(k), together)
        assert torch.equal(torch.cat([case.run(k, part=slice(a, b)) for a, b in pairwise(borders)]), together)
    alone = [case.run(k, part=slice(t, t + 1)) for t in range(0, tokens, 3)]
    assert torch.equal(torch.cat(alone), together[::3])


@pytest.mark.parametrize("storage", STORAGE)
def test_two_threads_share_one_long_query(storage: str) -> None:
    case = make([1], [39999], 16, 64, storage, levels=1)
    one = case.run(512)
    assert torch.equal(one, best(scores(case), case.visible_T, 512))
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert torch.equal(case.run(512), one)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("per_page", [7, 16, 17, 64])
@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_one_fp4_query_reads_packed_rows_of_all_pages(dim: int, heads: int, per_page: int, shuffled: bool) -> None:
    """Few heads have a path of their own, and rows of a page that follow each other another than those that do not."""
    case = make([3], [2001], heads, dim, "packed", levels=1, ratio=1, per_page=per_page, shuffled=shuffled)
    expected = best(scores(case), case.visible_T, 5)
    assert torch.equal(case.run(5), expected)
    alone = [case.run(5, part=slice(t, t + 1)) for t in range(3)]
    assert torch.equal(torch.cat(alone), expected)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("per_page", [65, 72, 128, 200, 1003, 4000])
@pytest.mark.parametrize(("heads", "dim"), [(1, 32), (2, 128), (4, 64), (5, 64)])
def test_pages_of_more_rows_than_one_call_scores(heads: int, dim: int, per_page: int, shuffled: bool) -> None:
    """One call scores up to 64 rows that follow each other. Panels and parts of threads begin anywhere in a page."""
    case = make([3], [3001], heads, dim, "packed", levels=1, ratio=1, per_page=per_page, shuffled=shuffled)
    expected = best(scores(case), case.visible_T, 7)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(case.run(7), expected)
        alone = [case.run(7, part=slice(t, t + 1)) for t in range(3)]
        assert torch.equal(torch.cat(alone), expected)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("signs", [-1, 0, 1])
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_one_query_alone_chooses_as_in_a_block(data: st.DataObject, heads: int, signs: int) -> None:
    """Rounded scores, too, with weights of one sign and of both; so many entries that heads of positive weight decide
    about most of them alone."""
    dim = data.draw(st.sampled_from([32, 64, 128]))
    per_page = data.draw(st.sampled_from([64, 72, 200, 1003]))
    case = make([6], [3000 + data.draw(st.integers(0, 40))], heads, dim, "packed", ratio=1, per_page=per_page)
    weight_TJ = case.weight_TJ if signs == 0 else signs * case.weight_TJ.abs()
    if data.draw(st.booleans()):
        weight_TJ[:, 0] = data.draw(st.sampled_from([0.0, -0.0, float("inf"), float("-inf"), float("nan")]))
    case = replace(case, q_TJI=as_fp4(case.q_TJI), weight_TJ=weight_TJ)
    k = data.draw(st.sampled_from([1, 3, 20]))
    together = case.run(k)
    assert torch.equal(torch.cat([case.run(k, part=slice(t, t + 1)) for t in range(6)]), together)
    finite_T = weight_TJ.isfinite().all(dim=1)
    if finite_T.all():
        score_TS = scores(case)
        kept_TS = torch.zeros_like(score_TS, dtype=torch.bool).scatter_(1, together, True)
        worst_T = score_TS.masked_fill(~kept_TS, float("inf")).amin(dim=1)
        left_T = score_TS.masked_fill(kept_TS, float("-inf")).amax(dim=1)
        assert (worst_T >= left_T - 2e-6 * score_TS[score_TS.isfinite()].abs().max()).all()


def test_packed_rows_with_a_gap_between_them() -> None:
    case = make([2], [1500], 4, 64, "packed", levels=1, ratio=1, per_page=64)
    expected = best(scores(case), case.visible_T, 9)
    wide = torch.full((len(case.keys_MI), 40), 255, dtype=torch.uint8)
    wide[:, :34] = case.keys_MI
    case = replace(case, keys_MI=wide[:, :34])
    assert torch.equal(case.run(9), expected)
    assert torch.equal(case.run(9, part=slice(1, 2)), expected[1:])


@pytest.mark.parametrize("order", ["rising", "falling", "equal"])
def test_sorted_scores(order: str) -> None:
    """Rising scores enter one and all, falling and equal ones never after the first k."""
    case = make([2], [9998], 1, 2, ratio=1)
    value_S = torch.arange(10000.0) + 1
    value_S = {"rising": value_S, "falling": 10001 - value_S, "equal": torch.ones(10000)}[order]
    case.keys_MI[case.pages.rows(torch.arange(10000)[None].expand(2, -1))[0]] = value_S[:, None].expand(-1, 2)
    case = replace(case, q_TJI=torch.ones_like(case.q_TJI), weight_TJ=torch.ones_like(case.weight_TJ))
    last = case.run(100)[-1]
    assert torch.equal(last, torch.arange(9900, 10000) if order == "rising" else torch.arange(100))


def test_scores_of_all_sizes() -> None:
    for scale in (2.0**-133, 2.0**-60, 2.0**50):
        case = make([5], [600], 4, 32, levels=2)
        expected = best(scores(case), case.visible_T, 9)
        assert torch.equal(replace(case, q_TJI=case.q_TJI * scale).run(9), expected)


def test_nan_and_minus_infinity_are_never_chosen() -> None:
    case = make([1], [299], 1, 2, ratio=1)
    case = replace(case, q_TJI=torch.ones_like(case.q_TJI), weight_TJ=-torch.ones_like(case.weight_TJ))
    row_S = case.pages.rows(torch.arange(300)[None])[0]
    case.keys_MI[row_S] = 1.0
    case.keys_MI[row_S[:150]] = float("inf")
    case.keys_MI[row_S[150:200]] = float("nan")
    assert torch.equal(case.run(120)[0], torch.cat([torch.arange(200, 300), torch.full((20,), -1)]))


def test_nothing_visible_and_no_query() -> None:
    case = make([3], [0], 2, 4)
    assert case.run(4).shape == (3, 0)
    nothing = replace(case.part(slice(0, 1)), runs=(0,), q_TJI=case.q_TJI[:0], weight_TJ=case.weight_TJ[:0])
    empty = torch.empty(0, dtype=torch.int64)
    pages = replace(nothing.pages, sequence_T=empty)
    out = index_topk(nothing.q_TJI, nothing.weight_TJ, nothing.keys_MI, pages, empty, 8, 4, runs=(0,), impl="native")
    assert out.shape == (0, 4)


@pytest.mark.parametrize("storage", STORAGE)
def test_torch_reads_the_same_keys(storage: str) -> None:
    case = make([40, 2], [100, 300], 5, 32, storage, levels=1)
    assert torch.equal(case.run(20, "reference"), case.run(20))


def test_packed_keys_of_another_length_are_refused() -> None:
    case = make([2], [40], 2, 64, "packed")
    with pytest.raises(ValueError, match="packed keys of 64 dims need rows of 34 bytes, got 33"):
        replace(case, keys_MI=case.keys_MI[:, :33]).run(3)


def test_native_is_refused_where_it_cannot_run() -> None:
    case = make([2], [40], 2, 64)
    with pytest.raises(ValueError, match=r"torch\.float64, not torch\.float32"):
        replace(case, q_TJI=case.q_TJI.double()).run(3)
