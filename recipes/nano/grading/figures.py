"""What was graded: outcomes of single questions, and the figures of many."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question. score: 0 to 1. tokens: of thought and answer. counts: what else was counted (calls, faults)."""

    kind: str
    score: float
    tokens: int = 0
    cut: bool = False
    counts: dict[str, int] = field(default_factory=dict)


def share(scores: Iterable[float]) -> dict[str, Any]:
    """Number, mean and standard error of the mean (None for fewer than two)."""
    found = list(scores)
    error = stdev(found) / len(found) ** 0.5 if len(found) > 1 else None
    return {"n": len(found), "mean": fmean(found) if found else None, "error": error}


def figures(
    outcomes: Iterable[Outcome], groups: Callable[[Outcome], Iterable[str]] = lambda outcome: (outcome.kind,)
) -> dict[str, Any]:
    """The figures of a row: all together, by kind, mean length, share that was cut, sums of what was counted."""
    found = list(outcomes)
    kinds: defaultdict[str, list[float]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for outcome in found:
        for kind in groups(outcome):
            kinds[kind].append(outcome.score)
        counts.update(outcome.counts)
    row = share(outcome.score for outcome in found)
    row["tokens"] = fmean(outcome.tokens for outcome in found) if found else None
    row["cut"] = fmean(float(outcome.cut) for outcome in found) if found else None
    row["kinds"] = {kind: share(scores) for kind, scores in sorted(kinds.items())}
    if counts:
        row["counts"] = dict(counts)
    return row


def percent(row: dict[str, Any]) -> str:
    """`97.4 ± 0.7` of a row or a kind."""
    if row["mean"] is None:
        return "-"
    error = "" if row["error"] is None else f" ± {100 * row['error']:.1f}"
    return f"{100 * row['mean']:.1f}{error}"
