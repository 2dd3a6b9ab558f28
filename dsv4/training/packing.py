"""Documents into sequences of one length (report 4.1): best fit, so that few documents are cut and few places stay
empty."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of item numbers, each bin's lengths adding up to at most `capacity`.

    Longest first, each into the bin it fills best (Ding et al. 2024); order within equal lengths is kept, so the result
    depends on the input alone. Raises ValueError for a length outside 1..capacity.
    """
    if any(not 1 <= length <= capacity for length in lengths):
        raise ValueError(f"lengths must be in 1..{capacity}, got {min(lengths)} to {max(lengths)}")
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (places left, bin), ascending
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        found = bisect_left(room, (lengths[item], -1))
        if found < len(room):
            left, into = room.pop(found)
        else:
            left, into = capacity, len(bins)
            bins.append([])
        bins[into].append(item)
        if left > lengths[item]:
            insort(room, (left - lengths[item], into))
    return bins


def cut(tokens: int, capacity: int) -> list[tuple[int, int]]:
    """[first, last) pieces of a document that is longer than a sequence; the last one may be short."""
    return [(first, min(first + capacity, tokens)) for first in range(0, tokens, capacity)]
