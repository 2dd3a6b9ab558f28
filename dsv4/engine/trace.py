"""Recording what the model chooses inside, for requests that ask for it (`SamplingParams.trace`).

A step with such a request runs op by op, because only the modules tell their choices; its numbers are those of the
fused step. Steps without one are not touched.

T tokens of a step, E experts, K choices, V vocabulary.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dsv4.generation import TokenTrace
from dsv4.model.step import IndexedAttention, Regime

Row = Sequence[int]


class StepTrace:
    """Watches one step: the observer of its pass, and the regime that tells the indexers' choices."""

    def __init__(self) -> None:
        self._experts: dict[int, Tensor] = {}
        self._entries: dict[int, tuple[Tensor | None, Tensor]] = {}
        self.regime = Regime(indexed=self._indexed)

    def routed(self, layer: int, score_TE: Tensor, ids_TK: Tensor) -> None:
        """As in dsv4.model.step.Observer."""
        self._experts[layer] = ids_TK

    def _indexed(self, seen: IndexedAttention) -> None:
        self._entries[seen.layer] = seen.chosen_TK, seen.visible_T

    def rows(self, position: int, start: int, count: int) -> TokenTrace:
        """The trace of `count` rows of the step from row `start` on, which are positions from `position` on."""
        part = slice(start, start + count)
        return TokenTrace(
            first=position,
            experts={
                layer: [array("i", row) for row in ids_TK[part].tolist()] for layer, ids_TK in self._experts.items()
            },
            entries={
                layer: _read(None if chosen_TK is None else chosen_TK[part].tolist(), visible_T[part].tolist())
                for layer, (chosen_TK, visible_T) in self._entries.items()
            },
            kept=[None] * count,
        )


def _read(chosen: list[list[int]] | None, visible: list[int]) -> list[Row]:
    """The entries that each position read; a range where that is all of them."""
    if chosen is None:
        return [range(count) for count in visible]
    rows = [[entry for entry in row if entry >= 0] for row in chosen]
    return [range(count) if len(row) == count else array("i", row) for row, count in zip(rows, visible, strict=True)]


@dataclass(slots=True)
class RequestTrace:
    """What a request's next event will tell: the positions computed since the one before."""

    pending: list[TokenTrace] = field(default_factory=list)

    def add(self, piece: TokenTrace) -> TokenTrace | None:
        """Take what a step has computed. Returns what must be told first, where it is not continued: a request that was
        preempted may go on from a prefix that somebody else has computed further."""
        told = None
        if self.pending and self.pending[-1].last != piece.first:
            told = self.take(None, 0.0)
        self.pending.append(piece)
        return told

    def take(self, kept: Row | None, mass: float) -> TokenTrace | None:
        """All of it as one trace. kept, mass: of the token that was chosen after the last position."""
        pieces, self.pending = self.pending, []
        if not pieces:
            return None
        count = sum(len(piece.kept) for piece in pieces)
        return TokenTrace(
            first=pieces[0].first,
            experts={layer: [row for p in pieces for row in p.experts[layer]] for layer in pieces[0].experts},
            entries={layer: [row for p in pieces for row in p.entries[layer]] for layer in pieces[0].entries},
            kept=[*[None] * (count - 1), kept],
            masses=[*[0.0] * (count - 1), mass],
        )
