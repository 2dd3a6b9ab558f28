"""Queries cut into blocks of neighbours that belong to one sequence."""

from collections.abc import Iterator
from itertools import pairwise


def query_blocks(runs: tuple[int, ...], size: int) -> Iterator[tuple[int, int]]:
    """(first, last) of blocks of at most `size` queries; `runs` are the borders of the sequences: 0, ..., T."""
    for first, last in pairwise(runs):
        for at in range(first, last, size):
            yield at, min(at + size, last)
