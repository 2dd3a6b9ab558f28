"""Means with standard errors, and the comparison of two runs on the same items.

Answers to one item, and items of one cluster, are not independent: the standard error is that of cluster means
(Miller 2024, "Adding error bars to evals", sections 2.2 and 4; without the factor G / (G - 1) its formula gives too
small errors for few clusters).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dsv4.evals.suite import Graded

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Mean:
    """value: of all answers. error: its standard error; None with fewer than two clusters. answers, items, clusters:
    how many."""

    value: float
    error: float | None
    answers: int
    items: int
    clusters: int


@dataclass(frozen=True, slots=True)
class Paired:
    """A run against another on the items that both have. difference: of means, first less second. error: its standard
    error. probability: of a difference at least as large if there were none. test: which. wins, losses: items that the
    first has better, and worse. items: that both have."""

    difference: float
    error: float | None
    probability: float | None
    test: str
    wins: int
    losses: int
    items: int


def mean(graded: Sequence[Graded]) -> Mean:
    """The mean of all values. At least one answer."""
    values = [one.value for one in graded]
    clusters = [one.cluster for one in graded]
    error = clustered_error(values, clusters)
    return Mean(sum(values) / len(values), error, len(values), len({one.item for one in graded}), len(set(clusters)))


def clustered_error(values: Sequence[float], clusters: Sequence[str]) -> float | None:
    """The standard error of the mean of values whose errors are shared within a cluster; None with fewer than two
    clusters."""
    middle = sum(values) / len(values)
    sums: dict[str, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - middle
    count = len(sums)
    if count < 2:
        return None
    return math.sqrt(sum(one * one for one in sums.values()) * count / (count - 1)) / len(values)


def figures(graded: Sequence[Graded]) -> dict[str, float]:
    """The means of the other figures of scores, each over the answers that have it."""
    found: dict[str, list[float]] = {}
    for one in graded:
        for name, value in one.figures.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def grouped(graded: Iterable[Graded], key: Callable[[Graded], Key]) -> dict[Key, list[Graded]]:
    """Answers by a property, in the order in which its values appear."""
    found: dict[Key, list[Graded]] = {}
    for one in graded:
        found.setdefault(key(one), []).append(one)
    return found


def mean_value(graded: Sequence[Graded]) -> float:
    """The mean of all values, without its error. At least one answer."""
    return sum(one.value for one in graded) / len(graded)


def compare(first: Sequence[Graded], second: Sequence[Graded]) -> Paired:
    """Both runs on the items they share. With one answer to each item, right or wrong: McNemar's exact test; else the
    paired t-test over clusters. Raises ValueError without a shared item."""
    left, right = (grouped(run, lambda one: one.item) for run in (first, second))
    shared = [item for item in left if item in right]
    if not shared:
        raise ValueError("the two runs have no item in common")
    gaps = [mean_value(left[item]) - mean_value(right[item]) for item in shared]
    clusters = [left[item][0].cluster for item in shared]
    wins, losses = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    difference, error = sum(gaps) / len(gaps), clustered_error(gaps, clusters)
    single = all(len(side[item]) == 1 and side[item][0].value in (0, 1) for side in (left, right) for item in shared)
    if single and len(set(clusters)) == len(clusters):
        return Paired(difference, error, mcnemar(wins, losses), "McNemar, exact", wins, losses, len(shared))
    if not error:
        chance = 1.0 if difference == 0 else None
    else:
        chance = t_probability(difference / error, len(set(clusters)) - 1)
    return Paired(difference, error, chance, "paired t", wins, losses, len(shared))


def mcnemar(wins: int, losses: int) -> float:
    """The two-sided exact probability of at least such an imbalance among wins + losses fair coins."""
    total, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)


def t_probability(t: float, freedom: int) -> float:
    """The two-sided probability of Student's t with so many degrees of freedom: the incomplete beta function
    I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + t^2)."""
    if not math.isfinite(t):
        return 0.0
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only below
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    value = 0.0
    for m in range(200, 0, -1):  # backwards: no start value is needed
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        value = even / (1 + odd / (1 + value))
    first = -(a + b) * x / (a + 1)
    return front / (1 + first / (1 + value))
