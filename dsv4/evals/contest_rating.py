"""The Codeforces rating of V4's report: answers of a model placed among the people of a contest (evaluation.md 7.1).

Published: 32 answers a problem, of which 10 are drawn without replacement, in random order; the first right one counts;
a solved problem is worth the median points of the people with as many failed tries; the points of the contest give a
rank, the rank a rating; the expectation over all draws is the contest's, and the mean over contests is the result.

Not published, chosen here:

- Where nobody solved the problem with so many failed tries, the people with the nearest number count, of two equally
  near ones those with more failed tries. Nobody at all: the problem's full points less 50 a failed try, as Codeforces
  counts, but at least 30 % of them.
- The rank is one more than the number of people with more points. The rating is where the expected rank of a player
  of that rating equals it: 1 + sum over people of 1 / (1 + 10^((rating - theirs) / 400)) (Elo). The first and the last
  rank have none: ratings end at LOWEST and HIGHEST.
- The expectation is exact: the distribution of failed tries of each problem, then the sum of independent problems.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

DRAWN = 10
LOWEST, HIGHEST = 0.0, 4000.0


@dataclass(frozen=True, slots=True)
class ContestProblem:
    """points: of a solution at once and without failed tries. solvers: (failed tries, points got) of each person who
    solved it. Raises ValueError naming the field."""

    name: str
    points: float
    solvers: Sequence[tuple[int, float]] = ()

    def __post_init__(self) -> None:
        if not self.points > 0:
            raise ValueError(f"points: {self.name} is worth {self.points}, must be more than 0")
        if any(tries < 0 or points < 0 for tries, points in self.solvers):
            raise ValueError(f"solvers: {self.name} has negative tries or points")

    def worth(self, failed: int) -> float:
        """What a solution after so many failed tries counts."""
        by_tries = defaultdict(list)
        for tries, points in self.solvers:
            by_tries[tries].append(points)
        if not by_tries:
            return max(0.3 * self.points, self.points - 50 * failed)
        return float(median(by_tries[min(by_tries, key=lambda tries: (abs(tries - failed), -tries))]))


@dataclass(frozen=True, slots=True)
class Contest:
    """people: (rating before the contest, points in it) of each. Raises ValueError naming the field."""

    name: str
    problems: Sequence[ContestProblem]
    people: Sequence[tuple[float, float]] = field(repr=False)

    def __post_init__(self) -> None:
        for what in ("problems", "people"):
            if not getattr(self, what):
                raise ValueError(f"{what}: contest {self.name!r} has none")


def failed_tries(total: int, right: int, drawn: int = DRAWN) -> list[float]:
    """The chance of 0, 1, ... `drawn` - 1 failed tries before the first right answer, when `drawn` of `total` answers
    come in random order; what is missing to 1 is the chance to fail. Raises ValueError unless drawn <= total."""
    if not 0 <= right <= total or not 1 <= drawn <= total:
        raise ValueError(f"answers: {right} right of {total}, {drawn} drawn")
    chances, still_failing = [], 1.0
    for tried in range(drawn):
        chances.append(still_failing * right / (total - tried))
        still_failing *= (total - right - tried) / (total - tried)
        if total - right - tried <= 0:
            still_failing = 0.0
    return chances


def points_distribution(contest: Contest, answers: Mapping[str, tuple[int, int]], drawn: int) -> dict[float, float]:
    """Points in the contest -> chance. answers: problem -> (answers, right ones); a problem without answers is not
    solved. Raises ValueError if there are fewer answers than are drawn, or answers to another contest's problem."""
    if unknown := answers.keys() - {problem.name for problem in contest.problems}:
        raise ValueError(f"answers: contest {contest.name!r} has no problem {', '.join(sorted(unknown))}")
    sums = {0.0: 1.0}
    for problem in contest.problems:
        total, right = answers.get(problem.name, (drawn, 0))
        chances = failed_tries(total, right, drawn)
        outcomes = [(problem.worth(failed), chance) for failed, chance in enumerate(chances) if chance > 0]
        outcomes.append((0.0, max(0.0, 1.0 - sum(chances))))
        added: dict[float, float] = defaultdict(float)
        for points, chance in sums.items():
            for more, its_chance in outcomes:
                added[points + more] += chance * its_chance
        sums = dict(added)
    return sums


def rank(contest: Contest, points: float) -> int:
    """The place among the people of the contest."""
    return 1 + sum(theirs > points for _, theirs in contest.people)


def rating(contest: Contest, place: int) -> float:
    """The rating whose expected rank among the people is `place`, within LOWEST and HIGHEST, to a hundredth."""
    low, high = LOWEST, HIGHEST
    while high - low > 0.005:
        middle = (low + high) / 2
        expected = 1 + sum(1 / (1 + 10 ** ((middle - theirs) / 400)) for theirs, _ in contest.people)
        low, high = (middle, high) if expected > place else (low, middle)
    return (low + high) / 2


def expected_rating(contest: Contest, answers: Mapping[str, tuple[int, int]], drawn: int = DRAWN) -> float:
    """The rating of the contest, in expectation over the draws."""
    by_place: dict[int, float] = defaultdict(float)
    for points, chance in points_distribution(contest, answers, drawn).items():
        by_place[rank(contest, points)] += chance
    return sum(chance * rating(contest, place) for place, chance in by_place.items() if chance > 0)


def mean_rating(
    contests: Sequence[Contest], answers: Mapping[str, Mapping[str, tuple[int, int]]], drawn: int = DRAWN
) -> float:
    """The mean over contests; answers: contest -> problem -> (answers, right ones). Raises ValueError for none."""
    if not contests:
        raise ValueError("contests: there is none")
    return sum(expected_rating(each, answers.get(each.name, {}), drawn) for each in contests) / len(contests)
