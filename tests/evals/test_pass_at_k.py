"""pass@k by hand, and against all draws."""

from itertools import combinations

import pytest

from dsv4.evals.pass_at_k import mean_pass_at_k, pass_at_k


def test_by_hand() -> None:
    assert pass_at_k(4, 1, 1) == pytest.approx(1 / 4)
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)
    assert pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)
    assert pass_at_k(3, 0, 3) == 0.0
    assert pass_at_k(3, 2, 3) == 1.0


@pytest.mark.parametrize(("total", "right", "k"), [(6, 2, 3), (7, 1, 4), (5, 5, 1), (8, 3, 8)])
def test_it_is_the_share_of_all_draws(total: int, right: int, k: int) -> None:
    draws = list(combinations(range(total), k))
    share = sum(any(answer < right for answer in draw) for draw in draws) / len(draws)
    assert pass_at_k(total, right, k) == pytest.approx(share)


def test_the_mean_over_questions() -> None:
    assert mean_pass_at_k([[True, False], [False, False]], 1) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="no question"):
        mean_pass_at_k([], 1)


@pytest.mark.parametrize(("total", "right", "k"), [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)])
def test_impossible_counts_are_refused(total: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="within"):
        pass_at_k(total, right, k)
