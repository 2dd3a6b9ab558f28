"""pass@k: the chance that one of k answers at least is right, from n answers of which c were (2107.03374, 2.1)."""

from collections.abc import Sequence


def pass_at_k(total: int, right: int, k: int) -> float:
    """The unbiased estimate 1 - C(total - right, k) / C(total, k), as a product that stays within floats.

    Raises ValueError unless 1 <= k <= total and 0 <= right <= total.
    """
    if not 1 <= k <= total:
        raise ValueError(f"k: {k} is not within 1 and the {total} answers of a question")
    if not 0 <= right <= total:
        raise ValueError(f"right: {right} is not within 0 and {total}")
    missed = 1.0
    for drawn in range(k):
        missed *= max(0, total - right - drawn) / (total - drawn)
    return 1.0 - missed


def mean_pass_at_k(answers: Sequence[Sequence[bool]], k: int) -> float:
    """The mean over questions; `answers` has for each question whether each of its answers was right. Raises
    ValueError for no question, or a question with fewer than k answers."""
    if not answers:
        raise ValueError("answers: there is no question")
    return sum(pass_at_k(len(each), sum(each), k) for each in answers) / len(answers)
