"""Standard errors and comparisons, against numbers worked out by hand."""

import math

import pytest

from dsv4.evals.statistics import clustered_error, compare, figures, grouped, mcnemar, mean, t_probability
from dsv4.evals.suite import Graded


def graded(values: dict[str, list[float]], clusters: dict[str, str] | None = None) -> list[Graded]:
    named = clusters or {}
    return [Graded(i, n, v, cluster=named.get(i, i)) for i, some in values.items() for n, v in enumerate(some)]


def test_independent_items_have_the_usual_error() -> None:
    found = mean(graded({"a": [1], "b": [0], "c": [1], "d": [1]}))
    assert found.value == 0.75
    assert found.error == pytest.approx(math.sqrt(0.25 / 4))  # sample variance 0.25 of four
    assert (found.answers, found.items, found.clusters) == (4, 4, 4)
    assert mean(graded({"a": [1, 1]})).error is None


def test_answers_to_one_item_are_one_observation() -> None:
    once = mean(graded({"a": [1], "b": [0]}))
    often = mean(graded({"a": [1] * 50, "b": [0] * 50}))
    assert often.error == pytest.approx(once.error)
    naive = clustered_error([1.0] * 50 + [0.0] * 50, [str(i) for i in range(100)])
    assert naive is not None
    assert often.error is not None
    assert naive < often.error / 5


def test_items_of_a_cluster_share_their_error() -> None:
    same = {"a": "x", "b": "x", "c": "y", "d": "y"}
    values = {"a": [1.0], "b": [1.0], "c": [0.0], "d": [0.0]}
    assert mean(graded(values, same)).error == pytest.approx(0.5)
    assert mean(graded(values)).error == pytest.approx(math.sqrt((1 / 3) / 4))


def test_figures_and_groups() -> None:
    some = [
        Graded("a", 0, 1, group="x", figures={"f": 1.0}),
        Graded("b", 0, 1, group="y", figures={"f": 0.0}),
        Graded("c", 0, 1, group="x"),
    ]
    assert figures(some) == {"f": 0.5}
    assert {name: len(part) for name, part in grouped(some, lambda one: one.group).items()} == {"x": 2, "y": 1}


def test_two_runs_with_one_answer_each_are_compared_by_mcnemar() -> None:
    first = graded({str(i): [1.0] for i in range(12)} | {"z": [0.0]})
    second = graded({str(i): [float(i < 2)] for i in range(12)} | {"z": [1.0], "other": [1.0]})
    found = compare(first, second)
    assert (found.wins, found.losses, found.items) == (10, 1, 13)
    assert found.test == "McNemar, exact"
    assert found.probability == pytest.approx(2 * 12 / 2**11)
    assert found.difference == pytest.approx(9 / 13)


def test_two_runs_with_several_answers_are_compared_by_the_paired_test() -> None:
    first = graded({"a": [1, 1], "b": [1, 0], "c": [0, 1]})
    second = graded({"a": [0, 0], "b": [0, 0], "c": [0, 0]})
    found = compare(first, second)
    error = math.sqrt(((1 / 3) ** 2 + 2 * (1 / 6) ** 2) / 2 / 3)
    assert found.test == "paired t"
    assert found.difference == pytest.approx(2 / 3)
    assert found.error == pytest.approx(error)
    assert found.probability == pytest.approx(t_probability(2 / 3 / error, 2))
    same = compare(first, first)
    assert (same.difference, same.probability) == (0, 1)


def test_runs_without_a_shared_item_are_refused() -> None:
    with pytest.raises(ValueError, match="no item in common"):
        compare(graded({"a": [1]}), graded({"b": [1]}))


# two-sided probabilities of tables of Student's t
@pytest.mark.parametrize(
    ("t", "freedom", "probability"),
    [(2.0, 10, 0.073388), (12.706, 1, 0.05), (1.96, 100_000, 0.05), (0.0, 5, 1.0), (-3.0, 100, 0.003408)],
)
def test_probabilities_of_t(t: float, freedom: int, probability: float) -> None:
    assert t_probability(t, freedom) == pytest.approx(probability, abs=2e-5)


def test_mcnemar() -> None:
    assert mcnemar(10, 2) == pytest.approx(0.0385742)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 3) == 1.0
