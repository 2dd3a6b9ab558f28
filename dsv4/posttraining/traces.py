"""Joining what the model chose inside: a rollout's trace comes in pieces, and positions that were read from the prefix
cache have their trace with whoever computed them.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dsv4.generation import TokenTrace

Row = Sequence[int]


@dataclass(slots=True)
class TracePieces:
    """The trace of one sequence while it is collected. tokens: the sequence so far, which the owner extends in place.

    A position's experts and entries depend only on the tokens up to it, so any sequence with the same beginning may
    lend them (`borrow`). What was chosen from (`kept`) belongs to the sequence itself.
    """

    tokens: list[int]
    experts: dict[int, dict[int, Row]] = field(default_factory=dict)  # layer -> position -> ids
    entries: dict[int, dict[int, Row]] = field(default_factory=dict)
    kept: dict[int, tuple[Row, float]] = field(default_factory=dict)  # position -> ids, log of their mass
    known: set[int] = field(default_factory=set)  # positions whose experts and entries are here

    def add(self, piece: TokenTrace) -> None:
        """Take a piece; positions that are here already keep what they have."""
        masses = piece.masses or [0.0] * len(piece.kept)
        for i, (ids, mass) in enumerate(zip(piece.kept, masses, strict=True)):
            position = piece.first + i
            if ids is not None:
                self.kept.setdefault(position, (ids, mass))
            if position in self.known or not (piece.experts or piece.entries):
                continue
            self.known.add(position)
            for mine, given in ((self.experts, piece.experts), (self.entries, piece.entries)):
                for layer, rows in given.items():
                    mine.setdefault(layer, {})[position] = rows[i]

    def missing(self, end: int) -> list[int]:
        """The positions below `end` that nobody has traced here."""
        return [position for position in range(end) if position not in self.known]

    def borrow(self, others: Iterable["TracePieces"], end: int) -> None:
        """Take what is missing below `end` from sequences that begin with the same tokens."""
        for other in others:
            lacking = self.missing(end)
            if not lacking:
                return
            same = _common(self.tokens, other.tokens)
            for position in lacking:
                if position < same and position in other.known:
                    self.known.add(position)
                    for mine, theirs in ((self.experts, other.experts), (self.entries, other.entries)):
                        for layer, rows in theirs.items():
                            mine.setdefault(layer, {})[position] = rows[position]

    def whole(self, end: int) -> TokenTrace:
        """The trace of positions 0..end-1. Raises ValueError naming the first one that is missing."""
        lacking = self.missing(end)
        if lacking:
            raise ValueError(f"no trace of position {lacking[0]} ({len(lacking)} of {end} are missing)")
        positions = range(end)
        kept = [self.kept.get(position) for position in positions]
        return TokenTrace(
            first=0,
            experts={layer: [rows[p] for p in positions] for layer, rows in self.experts.items()},
            entries={layer: [rows[p] for p in positions] for layer, rows in self.entries.items()},
            kept=[None if chosen is None else chosen[0] for chosen in kept],
            masses=[0.0 if chosen is None else chosen[1] for chosen in kept],
        )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def row_bytes(row: Row) -> bytes:
    """A row of ids as bytes; a range from 0 (all entries so far) stays as short as it is."""
    if isinstance(row, range) and row.start == 0 and row.step == 1:
        return array("I", [len(row) << 1 | 1]).tobytes()
    return array("I", [len(row) << 1, *row]).tobytes()


def row_of(words: Sequence[int], at: int) -> tuple[Row, int]:
    """What `row_bytes` has written, from word `at` on, and the word behind it."""
    count, whole = words[at] >> 1, words[at] & 1
    if whole:
        return range(count), at + 1
    return array("I", words[at + 1 : at + 1 + count]), at + 1 + count
