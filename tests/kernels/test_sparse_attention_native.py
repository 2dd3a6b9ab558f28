"""The native attention kernel: against the definition in float64, and that a query's bits are its own.

T queries, H heads, C entry dim, W window rows, M entry rows.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv4.kernels import native, rows
from dsv4.kernels.sparse_attention import ChosenEntries, KeySet, PageTable, Prefix, reference, sparse_attention

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="no native kernels here"),
    pytest.mark.usefixtures("without_gradients"),
]
NAN = float("nan")
STORAGE = ["float32", "bfloat16", "packed"]


@dataclass(frozen=True)
class Case:
    q_THC: Tensor
    window_WC: Tensor
    entries_MC: Tensor
    keys: KeySet
    sink_H: Tensor
    rope_dim: int

    def run(self, impl: str = "native", part: slice | None = None) -> Tensor:
        """All queries, or a part of them in a call of its own."""
        case = self if part is None else self.part(part)
        return sparse_attention(
            case.q_THC,
            case.window_WC,
            case.entries_MC,
            case.keys,
            case.sink_H,
            scale=case.q_THC.shape[2] ** -0.5,
            rope_dim=case.rope_dim,
            impl=impl,
        )

    def part(self, part: slice) -> "Case":
        first, last = part.start, part.stop
        keys = self.keys
        runs = sorted({first, last, *(border for border in keys.runs if first < border < last)})
        own = KeySet(keys.window_T2[part], tuple(border - first for border in runs))
        if isinstance(keys.entries, Prefix):
            pages = replace(keys.entries.pages, sequence_T=keys.entries.pages.sequence_T[part])
            seen_T = keys.entries.visible_T[part]
            own = replace(own, entries=Prefix(seen_T, pages, int(seen_T.max())))
        if isinstance(keys.entries, ChosenEntries):
            own = replace(own, entries=ChosenEntries(keys.entries.rows_TK[part]))
        return replace(self, q_THC=self.q_THC[part], keys=own)


def stored(x_MC: Tensor, storage: str, rope_dim: int) -> Tensor:
    return rows.pack_entry(x_MC, rope_dim) if storage == "packed" else x_MC.to(getattr(torch, storage))


def make(
    kind: str,
    lengths: list[int],
    cached: list[int],
    heads: int,
    dim: int,
    storage: str = "float32",
    window: int = 20,
    ratio: int = 4,
    per_page: int = 5,
    rope_dim: int | None = None,
) -> Case:
    """Sequences of new and cached tokens. What no query may read is NaN, or in packed rows anything."""
    bounds, at, visible, sequence = [], 1, [], []
    for b, (new, old) in enumerate(zip(lengths, cached, strict=True)):
        past = min(old, window - 1)
        bounds += [[max(at, at + past + i + 1 - window), at + past + i + 1] for i in range(new)]
        at += past + new + 1
        visible += [(old + i + 1) // ratio for i in range(new)]
        sequence += [b] * new
    width = max(1, -(-max(visible) // per_page))
    pages = PageTable(
        (1 + torch.randperm(len(lengths) * width)).view(-1, width) * per_page, per_page, torch.tensor(sequence)
    )
    window_WC = torch.full((at, dim), NAN)
    for first, last in bounds:
        window_WC[first:last] = torch.randn(last - first, dim)
    readable = torch.zeros((1 + len(lengths) * width) * per_page, dtype=torch.bool)
    seen_TK = torch.arange(max(visible)).expand(len(visible), -1)
    row_TK = pages.rows(torch.where(seen_TK < torch.tensor(visible)[:, None], seen_TK, -1))
    readable[row_TK[row_TK >= 0]] = True
    rope_dim = dim // 4 if rope_dim is None else rope_dim
    entries_MC = stored(torch.randn(len(readable), dim), storage, rope_dim)
    entries_MC[~readable] = 255 if storage == "packed" else NAN
    keys = KeySet(torch.tensor(bounds), (0, *torch.tensor(lengths).cumsum(0).tolist()))
    if kind == "prefix":
        keys = replace(keys, entries=Prefix(torch.tensor(visible), pages, max(visible)))
    if kind == "chosen":
        mixed_TK = row_TK.gather(1, torch.rand(row_TK.shape).argsort(dim=1))[:, :37]
        keys = replace(keys, entries=ChosenEntries(mixed_TK))
    if storage == "bfloat16":
        window_WC = window_WC.bfloat16()
    q_THC = torch.randn(len(visible), heads, dim) * 2
    return Case(q_THC, window_WC, entries_MC, keys, torch.randn(heads), rope_dim)


def exact(case: Case) -> Tensor:
    """The definition in float64, on the values that the storage holds."""
    entries_MC = case.entries_MC
    if entries_MC.dtype == torch.uint8:
        entries_MC = rows.unpack_entry(entries_MC, case.q_THC.shape[2], case.rope_dim)
    operands = case.q_THC.double(), case.window_WC.double(), entries_MC.double()
    return reference.sparse_attention(*operands, case.keys, case.sink_H.double(), case.q_THC.shape[2] ** -0.5, 0)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("kind", ["window", "prefix", "chosen"])
@pytest.mark.parametrize(
    ("heads", "dim"), [(1, 1), (4, 64), (3, 33), (5, 31), (6, 127), (7, 128), (9, 129), (31, 32), (64, 16), (130, 8)]
)
def test_equals_the_definition(heads: int, dim: int, kind: str, storage: str) -> None:
    case = make(kind, [37, 1, 3], [11, 200, 0], heads, dim, storage)
    torch.testing.assert_close(case.run().double(), exact(case), atol=5e-6, rtol=0)


@pytest.mark.parametrize("dim", [256, 257, 512, 600])
def test_wide_entries_are_multiplied_in_pieces(dim: int) -> None:
    case = make("prefix", [5, 2], [300, 900], 5, dim, "packed")
    torch.testing.assert_close(case.run().double(), exact(case), atol=2e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 127, 128, 129])
def test_every_length(length: int) -> None:
    for kind in ("window", "prefix", "chosen"):
        case = make(kind, [length], [length // 2], 4, 16, window=100)
        torch.testing.assert_close(case.run().double(), exact(case), atol=5e-6, rtol=0)


@pytest.mark.parametrize("storage", ["float32", "packed"])
@pytest.mark.parametrize("kind", ["window", "prefix", "chosen"])
@pytest.mark.parametrize(("heads", "dim"), [(4, 64), (3, 40), (64, 32), (17, 264)])
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_bits_do_not_depend_on_the_batch_the_cuts_or_the_threads(
    data: st.DataObject, heads: int, dim: int, kind: str, storage: str
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    cached = [data.draw(st.integers(0, 150)) for _ in lengths]
    case = make(kind, lengths, cached, heads, dim, storage, window=data.draw(st.sampled_from([20, 100])))
    together, tokens = case.run(), sum(lengths)
    assert together.isfinite().all()
    borders = sorted({0, tokens, *data.draw(st.lists(st.integers(0, tokens), max_size=4))})
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(case.run(), together)
        cuts = [case.run(part=slice(a, b)) for a, b in pairwise(borders)]
        assert torch.equal(torch.cat(cuts), together)
    alone = [case.run(part=slice(t, t + 1)) for t in range(tokens)]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("kind", ["window", "prefix", "chosen"])
@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize(("dim", "rope_dim"), [(128, 64), (128, 32), (192, 64), (80, 16), (320, 0), (64, 64), (12, 4)])
def test_one_query_of_few_heads_equals_the_same_query_in_a_block(
    dim: int, rope_dim: int, heads: int, kind: str, storage: str
) -> None:
    """It has a path of its own where its rows have whole quarters of 16 bytes."""
    case = make(kind, [5], [700], heads, dim, storage, window=60, rope_dim=rope_dim)
    if kind == "prefix" and storage == "packed":
        rows_MX = case.entries_MC
        blocks = -(-(dim - rope_dim) // 64)
        if blocks:  # scales of all sizes that change a result
            scale_MB = rows_MX[:, dim + rope_dim : dim + rope_dim + blocks]
            scale_MB[:] = (scale_MB.int() + torch.randint(-20, 2, scale_MB.shape)).to(torch.uint8)
    together = case.run()
    torch.testing.assert_close(together.double(), exact(case), atol=2e-5, rtol=0)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(torch.cat([case.run(part=slice(t, t + 1)) for t in range(5)]), together)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("per_page", [1, 63, 64, 65, 128, 200, 1000])
@pytest.mark.parametrize(("heads", "dim"), [(4, 64), (2, 128), (6, 64)])
def test_pages_of_every_length(heads: int, dim: int, per_page: int, storage: str) -> None:
    """One query, with few heads on a path of its own, and blocks read the same rows however they lie in pages."""
    case = make("prefix", [5], [2600], heads, dim, storage, window=60, per_page=per_page, rope_dim=16)
    together = case.run()
    torch.testing.assert_close(together.double(), exact(case), atol=2e-5, rtol=0)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(torch.cat([case.run(part=slice(t, t + 1)) for t in range(5)]), together)


@pytest.mark.parametrize("kind", ["prefix", "chosen"])
@pytest.mark.parametrize("heads", [2, 4])
def test_one_query_reads_large_scales_and_codes_below_the_normal_range(heads: int, kind: str) -> None:
    case = make(kind, [5], [700], heads, 128, "packed", window=60, rope_dim=64)
    code_MX, scale_M = case.entries_MC[:, :64], case.entries_MC[:, 192]
    small = torch.randint(0, 8, code_MX[::2].shape) | torch.randint(0, 2, code_MX[::2].shape) << 7
    code_MX[::2] = small.to(torch.uint8)
    large = scale_M[: len(scale_M) // 2 : 7]
    large[:] = torch.randint(127 + 5, 127 + 18, large.shape).to(torch.uint8)
    case = replace(case, q_THC=case.q_THC * 2**-24)
    together = case.run()
    torch.testing.assert_close(together.double(), exact(case), atol=1e-5 * float(together.abs().max()), rtol=0)
    assert torch.equal(torch.cat([case.run(part=slice(t, t + 1)) for t in range(5)]), together)


@pytest.mark.parametrize("kind", ["prefix", "chosen"])
@pytest.mark.parametrize(("heads", "dim"), [(4, 64), (64, 128), (3, 520), (4, 512)])
def test_two_threads_share_one_long_query(heads: int, dim: int, kind: str) -> None:
    case = make(kind, [1], [12000], heads, dim, "packed", window=128)
    if kind == "chosen":
        order = torch.randperm(3000)[:1024]
        read = make("prefix", [1], [12000], heads, dim).keys.entries
        assert isinstance(read, Prefix)
        pages = read.pages
        assert pages is not None
        case = replace(case, keys=replace(case.keys, entries=ChosenEntries(pages.rows(order[None]))))
        case.entries_MC[:] = rows.pack_entry(torch.randn(len(case.entries_MC), dim), case.rope_dim)
    one = case.run()
    torch.set_num_threads(2)
    assert torch.equal(case.run(), one)
    torch.testing.assert_close(one.double(), exact(case), atol=5e-6, rtol=0)


def test_a_window_that_jumps_reads_no_row_between() -> None:
    """Queries of one run whose windows leave a gap, or go back."""
    window_WC = torch.randn(60, 8)
    window_WC[20:30] = NAN
    bounds = torch.tensor([[0, 5], [3, 20], [30, 40], [31, 60], [2, 9], [9, 12]])
    case = Case(torch.randn(6, 3, 8), window_WC, torch.empty(0, 8), KeySet(bounds, (0, 6)), torch.randn(3), 0)
    torch.testing.assert_close(case.run().double(), exact(case), atol=5e-6, rtol=0)


def test_scores_of_all_sizes() -> None:
    case = make("prefix", [40], [30], 4, 32)
    for scale in (0.0, 1e-42, 1e-38, 1e-3, 40.0, 1e18):
        scaled = replace(case, q_THC=case.q_THC * scale)
        torch.testing.assert_close(scaled.run().double(), exact(scaled), atol=2e-4 if scale > 1 else 5e-6, rtol=0)
    for factor in (1e-42, 1e-38):
        small = replace(case, window_WC=case.window_WC * factor, entries_MC=case.entries_MC * factor)
        torch.testing.assert_close(small.run().double(), exact(small), atol=1e-43, rtol=1e-5)
    for sink in (float("-inf"), -1e30, 1e30):
        other = replace(case, sink_H=torch.full_like(case.sink_H, sink))
        torch.testing.assert_close(other.run().double(), exact(other), atol=5e-6, rtol=0)


def test_a_broken_row_reaches_only_the_queries_that_read_it() -> None:
    case = make("prefix", [60], [0], 4, 16)
    before = case.run()
    window_WC = case.window_WC.clone()
    window_WC[31] = NAN  # the row of token 30
    after = replace(case, window_WC=window_WC).run()
    reads = (case.keys.window_T2[:, 0] <= 31) & (case.keys.window_T2[:, 1] > 31)
    assert after[reads].isnan().all()
    assert torch.equal(after[~reads], before[~reads])


def test_no_query_is_an_empty_result() -> None:
    keys = KeySet(torch.empty(0, 2, dtype=torch.int64), (0,))
    out = sparse_attention(
        torch.empty(0, 4, 8), torch.empty(0, 8), None, keys, torch.zeros(4), scale=1.0, impl="native"
    )
    assert out.shape == (0, 4, 8)


def test_packed_rows_of_another_length_are_refused() -> None:
    case = make("prefix", [4], [20], 2, 64, "packed")
    with pytest.raises(ValueError, match="packed entries with 8 rotary dims need rows of 80 bytes, got 88"):
        replace(case, rope_dim=8).run()


def test_native_is_refused_where_it_cannot_run() -> None:
    case = make("window", [4], [0], 2, 8)
    with pytest.raises(ValueError, match=r"torch\.float64, not torch\.float32"):
        replace(case, q_THC=case.q_THC.double()).run()


@pytest.mark.parametrize("kind", ["prefix", "chosen"])
@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_torch_reads_packed_rows_too(impl: str, kind: str) -> None:
    case = make(kind, [30, 2], [3, 50], 3, 48, "packed")
    torch.testing.assert_close(case.run(impl).double(), exact(case), atol=5e-6, rtol=0)
