"""The Codeforces rating: each number here was computed by hand."""

import math

import pytest

from dsv4.evals.contest_rating import (
    HIGHEST,
    LOWEST,
    Contest,
    ContestProblem,
    expected_rating,
    failed_tries,
    mean_rating,
    points_distribution,
    rating,
)

EQUALS = [(1500.0, points) for points in (1000.0, 700.0, 400.0, 100.0)]


def test_the_chances_of_failed_tries() -> None:
    # one right answer of four, two drawn: it comes first with 1/4, second with 3/4 * 1/3, never with 1/2
    assert failed_tries(4, 1, 2) == pytest.approx([1 / 4, 1 / 4])
    assert failed_tries(4, 4, 2) == [1.0, 0.0]
    assert failed_tries(4, 0, 2) == [0.0, 0.0]
    # 30 of 32 right, 10 drawn: a third try always succeeds
    assert failed_tries(32, 30)[:4] == pytest.approx([30 / 32, 2 / 32 * 30 / 31, 2 / 32 * 1 / 31, 0])
    with pytest.raises(ValueError, match="10 drawn"):
        failed_tries(8, 1)


def test_a_solution_is_worth_the_median_of_the_people_with_as_many_failed_tries() -> None:
    problem = ContestProblem("A", 500, [(0, 480), (0, 400), (0, 440), (2, 300), (2, 200), (6, 150)])
    assert problem.worth(0) == 440
    assert problem.worth(2) == 250
    assert problem.worth(1) == 250, "as near to 0 as to 2: the one with more failed tries"
    assert problem.worth(9) == 150
    assert ContestProblem("B", 500).worth(1) == 450
    assert ContestProblem("B", 500).worth(9) == 150


def test_a_rank_among_equals() -> None:
    # rank 2 of four people of 1500: 1 + 4p = 2, p = 1/4, so 10^(d/400) = 3 and d = 190.85
    contest = Contest("c", [ContestProblem("A", 500)], EQUALS)
    assert rating(contest, 2) == pytest.approx(1500 + 400 * math.log10(3), abs=0.01)
    assert rating(contest, 3) == pytest.approx(1500, abs=0.01)
    assert rating(contest, 1) == pytest.approx(HIGHEST, abs=0.01)
    assert rating(contest, 5) == pytest.approx(LOWEST, abs=0.01)


def test_a_contest_by_hand() -> None:
    problems = [ContestProblem("A", 500, [(0, 450), (1, 350)]), ContestProblem("B", 1000)]
    contest = Contest("c", problems, EQUALS)
    answers = {"A": (4, 1)}
    # A: 450 with 1/4, 350 with 1/4, nothing with 1/2; B has no answer. Places 3, 4 and 5
    assert points_distribution(contest, answers, 2) == pytest.approx({450: 0.25, 350: 0.25, 0: 0.5})
    # place 4: 1 + 4p = 4, p = 3/4, so 190.85 below; place 5 is below all: LOWEST
    below = 1500 - 400 * math.log10(3)
    assert expected_rating(contest, answers, 2) == pytest.approx(0.25 * 1500 + 0.25 * below + 0.5 * LOWEST, abs=0.02)


def test_problems_add_up() -> None:
    contest = Contest("c", [ContestProblem("A", 500), ContestProblem("B", 200)], EQUALS)
    found = points_distribution(contest, {"A": (2, 1), "B": (2, 1)}, 1)
    assert found == pytest.approx({0: 0.25, 200: 0.25, 500: 0.25, 700: 0.25})


def test_the_result_is_the_mean_over_contests() -> None:
    first = Contest("first", [ContestProblem("A", 500)], EQUALS)
    second = Contest("second", [ContestProblem("A", 50)], [(1500.0, 1000.0), (1500.0, 0.0)])
    answers = {"first": {"A": (1, 1)}, "second": {"A": (1, 1)}}
    # 500 points are place 3 of four, 50 are place 2 of two: 1 + 2p = 2, p = 1/2
    assert mean_rating([first, second], answers, 1) == pytest.approx(1500, abs=0.01)
    with pytest.raises(ValueError, match="there is none"):
        mean_rating([], answers)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="points: A"):
        ContestProblem("A", 0)
    with pytest.raises(ValueError, match="solvers: A"):
        ContestProblem("A", 1, [(-1, 1)])
    with pytest.raises(ValueError, match="people: contest 'c'"):
        Contest("c", [ContestProblem("A", 1)], [])
    with pytest.raises(ValueError, match="no problem B"):
        expected_rating(Contest("c", [ContestProblem("A", 1)], EQUALS), {"B": (1, 1)}, 1)
