"""The rows that the queries of a step may read, and the cut of queries into blocks of neighbours.

Legend: T tokens, K choices per token, B sequences, P pages.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PageTable:
    """The rows of the compressed entries of each sequence: entry j of sequence b is row first_BP[b, j //
    entries_per_page] + j % entries_per_page of the entry rows."""

    first_BP: Tensor  # int64
    entries_per_page: int
    sequence_T: Tensor  # int64: the sequence of each query

    def rows(self, entry_TK: Tensor) -> Tensor:
        """Buffer rows of entries entry_TK [T, K] of each query's own sequence; -1 stays -1."""
        safe_TK = entry_TK.clamp(min=0)
        page_TK = safe_TK // self.entries_per_page
        first_TK = self.first_BP[self.sequence_T[:, None], page_TK]
        return torch.where(entry_TK < 0, -1, first_TK + safe_TK % self.entries_per_page)


@dataclass(frozen=True, slots=True)
class Prefix:
    """HCA, and CSA with at most as many entries as it may choose: each query reads the first entries of its
    sequence."""

    visible_T: Tensor  # int64: the number of entries that each query reads
    pages: PageTable  # the rows of these entries
    longest: int  # an upper bound of visible_T known on the host


@dataclass(frozen=True, slots=True)
class ChosenEntries:
    """CSA: each query reads the entry rows that the indexer picked, in any order."""

    rows_TK: Tensor  # int64, -1 = none


@dataclass(frozen=True, slots=True)
class KeySet:
    """The rows that each query reads: a range of window rows, and compressed entries in CSA and HCA layers."""

    window_T2: Tensor  # int64 [first, last) of the window rows
    runs: tuple[int, ...]  # borders of the sequences among the queries: 0, ..., T
    entries: Prefix | ChosenEntries | None = None


def query_blocks(runs: tuple[int, ...], size: int) -> Iterator[tuple[int, int]]:
    """(first, last) of blocks of at most `size` queries; `runs` are the borders of the sequences: 0, ..., T."""
    for first, last in pairwise(runs):
        for at in range(first, last, size):
            yield at, min(at + size, last)
