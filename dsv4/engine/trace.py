"""Traces of a model's choices (experts, entries, kept ids), for requests with `SamplingParams.trace`.

A step with such a request runs op by op, because only the modules report their choices; the bits are those of the fused
step. Other steps do not change.

T tokens of a step, E experts, K choices, V vocabulary.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dsv4.generation import TokenTrace
from dsv4.kernels.indexer_loss import IndexedAttention
from dsv4.model.step import Regime

Row = Sequence[int]


class StepTrace:
    """Records the choices of one step. It is the observer of the pass, and its regime reports the choices of
    indexers."""

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
    """The entries that each position read; a range if it read all of them."""
    if chosen is None:
        return [range(count) for count in visible]
    rows = [[entry for entry in row if entry >= 0] for row in chosen]
    return [range(count) if len(row) == count else array("i", row) for row, count in zip(rows, visible, strict=True)]


@dataclass(slots=True)
class RequestTrace:
    """The trace for the next event of a request: the positions that were computed since the event before."""

    pending: list[TokenTrace] = field(default_factory=list)

    def add(self, piece: TokenTrace) -> TokenTrace | None:
        """Add the positions of a step. Returns the earlier positions if the new ones do not follow them, for an event
        of their own: a preempted request may resume at a prefix that another request has extended."""
        told = None
        if self.pending and self.pending[-1].last != piece.first:
            told = self.take(None, 0.0)
        self.pending.append(piece)
        return told

    def take(self, kept: Row | None, mass: float) -> TokenTrace | None:
        """Take all positions as one trace. kept, mass: of the token that was sampled after the last position."""
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
