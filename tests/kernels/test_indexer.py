"""The lightning indexer against a loop (report eqs 16-17): which entries are chosen, in which order."""

import pytest
import torch
from torch import Tensor

from dsv4.kernels.indexer import index_topk, reference
from dsv4.kernels.sparse_attention import PageTable

HEADS, DIM, PER_PAGE, RATIO = 3, 4, 5, 4


def make(lengths: list[int], cached: list[int], levels: int) -> dict:
    """Small whole numbers, so that scores are exact and tie often. Pages out of order; unreadable keys are NaN."""
    visible, sequence = [], []
    for b, (new, old) in enumerate(zip(lengths, cached, strict=True)):
        visible += [(old + i + 1) // RATIO for i in range(new)]
        sequence += [b] * new
    width = max(1, -(-max(visible) // PER_PAGE))
    first_BP = (1 + torch.randperm(len(lengths) * width).view(-1, width)) * PER_PAGE
    keys_MI = torch.full(((1 + len(lengths) * width) * PER_PAGE, DIM), float("nan"))
    for b, seen in zip(sequence, visible, strict=True):
        for j in range(seen):
            row = int(first_BP[b, j // PER_PAGE]) + j % PER_PAGE
            keys_MI[row] = torch.randint(-levels, levels + 1, (DIM,)).float()
    return {
        "q_TJI": torch.randint(-levels, levels + 1, (len(visible), HEADS, DIM)).float(),
        "weight_TJ": torch.randint(-levels, levels + 1, (len(visible), HEADS)).float(),
        "keys_MI": keys_MI,
        "pages": PageTable(first_BP, PER_PAGE, torch.tensor(sequence)),
        "visible_T": torch.tensor(visible),
        "longest": max(visible),
        "runs": (0, *torch.tensor(lengths).cumsum(0).tolist()),
    }


def brute_force(case: dict, k: int) -> list[list[int]]:
    chosen = []
    for t, seen in enumerate(case["visible_T"].tolist()):
        scored = []
        own = case["pages"].first_BP[case["pages"].sequence_T[t]].tolist()
        for s in range(seen):
            key = case["keys_MI"][own[s // PER_PAGE] + s % PER_PAGE]
            score = sum(
                float(case["weight_TJ"][t, n]) * max(0.0, float(case["q_TJI"][t, n] @ key)) for n in range(HEADS)
            )
            scored.append((-score, s))
        chosen.append(sorted(s for _, s in sorted(scored)[:k]))
    return chosen


def listed(chosen_TK: Tensor) -> list[list[int]]:
    """Rows without their -1, which must all come last."""
    rows = chosen_TK.tolist()
    for row in rows:
        count = sum(s >= 0 for s in row)
        assert all(s == -1 for s in row[count:]), row
    return [[s for s in row if s >= 0] for row in rows]


@pytest.mark.parametrize("k", [1, 3, 8, 100])
@pytest.mark.parametrize("levels", [1, 20], ids=["ties", "distinct"])
@pytest.mark.parametrize("packing", [([90], [0]), ([5, 60, 1], [0, 3, 50]), ([1, 1], [3, 77]), ([3], [0])])
def test_equals_the_loop(packing: tuple[list[int], list[int]], levels: int, k: int) -> None:
    case = make(*packing, levels)
    chosen_TK = index_topk(**case, k=k)
    assert chosen_TK.dtype == torch.int64
    assert chosen_TK.shape[1] == min(k, case["longest"])
    assert listed(chosen_TK) == brute_force(case, k)


def test_ties_go_to_the_older_entry() -> None:
    case = make([64], [0], 2)
    case["keys_MI"][:] = 1.0
    last = index_topk(**case, k=4)[-1].tolist()
    assert last == [0, 1, 2, 3]


def test_a_later_key_changes_no_earlier_choice() -> None:
    case = make([80], [0], 20)
    before = index_topk(**case, k=3)
    pages: PageTable = case["pages"]
    row = int(pages.rows(torch.full((80, 1), 10))[0])
    case["keys_MI"][row] = 1000.0
    after = index_topk(**case, k=3)
    first = 11 * RATIO - 1  # the token that closes block 10
    assert torch.equal(before[:first], after[:first])
    assert not torch.equal(before[first:], after[first:])


def test_blocks_of_queries_equal_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make([70, 33], [10, 0], 1)
    together = index_topk(**case, k=4)
    monkeypatch.setattr(reference, "_SCORES", 100)
    assert torch.equal(index_topk(**case, k=4), together)


def test_neighbours_in_the_batch_change_nothing() -> None:
    case = make([40, 60], [30, 0], 20)
    together = index_topk(**case, k=4)
    for b, part in enumerate((slice(0, 40), slice(40, 100))):
        pages = PageTable(case["pages"].first_BP[b : b + 1], PER_PAGE, torch.zeros(60, dtype=torch.int64))
        visible_T = case["visible_T"][part]
        alone = index_topk(
            case["q_TJI"][part],
            case["weight_TJ"][part],
            case["keys_MI"],
            pages,
            visible_T,
            int(visible_T.max()),
            4,
            runs=(0, len(visible_T)),
        )
        assert torch.equal(alone, together[part])


def test_scores_are_differentiable() -> None:
    shapes = [(3, HEADS, DIM), (3, HEADS), (5, DIM)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(reference.scores, inputs)


def test_an_unknown_implementation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"index_topk: impl must be one of .*reference, got 'nope'"):
        index_topk(**make([4], [0], 1), k=1, impl="nope")
