"""What the sampler's model chose inside, as tensors that make the training pass choose the same: experts (V3.2's Keep
Routing), compressed entries, and the ids left by truncation (V3.2's Keep Sampling Mask).

T packed tokens, K choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from dsv4.config import CSA_RATIO
from dsv4.generation import TokenTrace

Row = Sequence[int]
_NONE = -1


@dataclass(frozen=True, slots=True)
class Replay:
    """Choices of all positions of a packed batch. A row of -1 alone leaves the choice to the model.

    routes: ids_TK by layer. entries: entry numbers_TK by CSA layer; a layer all of whose positions read everything is
    left out, because the model does so without being told. kept_TK: ids among which the token after a position was
    chosen; None where all could be everywhere.
    """

    routes: Mapping[int, Tensor] = field(default_factory=dict)
    entries: Mapping[int, Tensor] = field(default_factory=dict)
    kept_TK: Tensor | None = None

    def to(self, device: torch.device) -> "Replay":
        """The same with its tensors on a device."""
        routes, entries = (
            {layer: ids_TK.to(device) for layer, ids_TK in part.items()} for part in (self.routes, self.entries)
        )
        return Replay(routes, entries, None if self.kept_TK is None else self.kept_TK.to(device))

    @classmethod
    def of(cls, traces: Sequence[TokenTrace | None], lengths: Sequence[int]) -> "Replay":
        """The traces of a batch's sequences, one after another."""
        starts = [0, *accumulate(lengths)][:-1]
        placed = [(start, length, trace) for start, length, trace in zip(starts, lengths, traces, strict=True) if trace]
        total = sum(lengths)
        layers = sorted({layer for _, _, trace in placed for layer in trace.experts})
        routes = {
            layer: _table([(s + t.first, n - t.first, t.experts.get(layer, ())) for s, n, t in placed], total)
            for layer in layers
        }
        entries = {
            layer: _table([(s + t.first, n - t.first, t.entries.get(layer, ())) for s, n, t in placed], total)
            for layer in sorted({layer for _, _, trace in placed for layer in trace.entries})
            if not all(_reads_everything(t, layer) for _, _, t in placed)
        }
        kept = [(s + t.first, n - t.first, [row or () for row in t.kept]) for s, n, t in placed]
        cut = any(row for _, _, rows in kept for row in rows)
        return cls(routes, entries, _table(kept, total) if cut else None)


def _reads_everything(trace: TokenTrace, layer: int) -> bool:
    rows = trace.entries.get(layer, ())
    return all(len(row) == (trace.first + i + 1) // CSA_RATIO for i, row in enumerate(rows))


def _table(parts: Sequence[tuple[int, int, Sequence[Row]]], total: int) -> Tensor:
    """Rows of ids at their places, filled up with -1. parts: first place, how many places there are, the rows."""
    width = max((len(row) for _, _, rows in parts for row in rows), default=0)
    table_TK = torch.full((total, max(1, width)), _NONE, dtype=torch.int64)
    for first, room, rows in parts:
        flat = [(first + i, row) for i, row in enumerate(rows[:room]) if len(row)]
        if not flat:
            continue
        counts = torch.tensor([len(row) for _, row in flat])
        places = torch.repeat_interleave(torch.tensor([place for place, _ in flat]), counts)
        columns = torch.arange(len(places)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        table_TK[places, columns] = torch.tensor([value for _, row in flat for value in row])
    return table_TK
