"""LayerCache on pages and slots. A StepCache computes all indices of a step once, and its layers share them.

Legend: T tokens, B sequences, W window rows, C head dim, X stored width, R gathered rows, N finished entries, M entry
rows, P pages, I indexer dim, S slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.cache.store import CacheStore, LayerStore
from dsv4.config import tail_length
from dsv4.kernels.sparse_attention import PageTable
from dsv4.model.inputs import Blocks, Entries, KeyBuffer, Sequences, TailName


@dataclass(frozen=True, slots=True)
class Place:
    """The slot and the pages of one sequence in the store.

    pages: at least as many as the sequence needs after this step. window_from: the first position whose ring rows the
    slot holds; it is above 0 only where the windows of a prefix without a snapshot are computed again. entries_from:
    the pages hold the entries of earlier tokens already, so these are not written again.
    """

    slot: int
    pages: Sequence[int]
    window_from: int = 0
    entries_from: int = 0


@dataclass(frozen=True, slots=True)
class _RingPlan:
    """Reads and writes of one kind of ring in a step: the order of kept rows and new rows in each sequence, and the new
    rows that the rings keep."""

    kept: Tensor  # rows of the flattened rings to read
    order: Tensor | None  # order of [kept rows, new rows]; None = as they are
    keep: Tensor | None  # new rows to keep, None = all ...
    keep_at: Tensor  # ... and the rows of the flattened rings they go to


def _plan_ring(
    places: Sequence[Place], spans: list[tuple[int, int]], firsts: list[int], ring: int, device: torch.device
) -> _RingPlan:
    """spans: for each sequence, the number of tokens that are cached and of new tokens. firsts: for each sequence, the
    first position to read. ring: rows of one ring."""
    kept, order, keep, keep_at = [], [], [], []
    new = sum(old - first for (old, _), first in zip(spans, firsts, strict=True))
    read, row = 0, 0
    for place, (old, count), first in zip(places, spans, firsts, strict=True):
        base = place.slot * ring
        kept += [base + p % ring for p in range(first, old)]
        order += [*range(read, read + old - first), *range(new + row, new + row + count)]
        last = min(count, ring)
        keep += range(row + count - last, row + count)
        keep_at += [base + p % ring for p in range(old + count - last, old + count)]
        read, row = read + old - first, row + count
    return _RingPlan(
        torch.tensor(kept, dtype=torch.int64, device=device),
        None if order == list(range(len(order))) else torch.tensor(order, device=device),
        None if len(keep) == row else torch.tensor(keep, device=device),
        torch.tensor(keep_at, dtype=torch.int64, device=device),
    )


def _write(plan: _RingPlan, rings_SX: Tensor, new_TX: Tensor) -> None:
    rows = new_TX if plan.keep is None else new_TX.index_select(0, plan.keep)
    rings_SX.index_copy_(0, plan.keep_at, rows)


def _in_order(plan: _RingPlan, kept_RX: Tensor | None, new_TX: Tensor) -> Tensor:
    rows = new_TX if kept_RX is None else torch.cat([kept_RX, new_TX])
    return rows if plan.order is None else rows.index_select(0, plan.order)


class StepCache:
    """The cache of one forward pass: the sequences of a batch, each with its place in the store."""

    def __init__(self, store: CacheStore, sequences: Sequences, places: Sequence[Place]) -> None:
        self.store, self.sequences, self.places = store, sequences, places
        lengths = [b - a for a, b in zip(sequences.borders, sequences.borders[1:], strict=False)]
        self._spans = list(zip(sequences.cached, lengths, strict=True))
        if len(places) != len(lengths):
            raise ValueError(f"{len(lengths)} sequences need as many places, got {len(places)}")
        self._device = sequences.positions_T.device
        window = store.config.sliding_window
        firsts = [
            max(old - window + 1, min(p.window_from, old), 0) for p, (old, _) in zip(places, self._spans, strict=True)
        ]
        self._window = _plan_ring(places, self._spans, firsts, store.spec.window_rows, self._device)
        self._window_T2 = self._ranges(window, firsts)
        self._tails = {ratio: self._tail(ratio) for ratio in sequences.blocks}
        widest = max(len(p.pages) for p in places)
        pages = [[*p.pages, *[0] * (widest - len(p.pages))] for p in places]
        self._pages_BP = torch.tensor(pages, device=self._device)
        self._tables = {ratio: self._table(ratio) for ratio in sequences.blocks}
        self._targets = {ratio: self._entry_rows(ratio, blocks) for ratio, blocks in sequences.blocks.items()}

    def layer(self, index: int) -> "PagedLayer":
        return PagedLayer(self, self.store.layers[index])

    def _ranges(self, window: int, firsts: list[int]) -> Tensor:
        """For each new token, the range [first, last) of the window rows that it reads."""
        parts, start = [], 0
        for (old, new), first in zip(self._spans, firsts, strict=True):
            last = start + old - first + torch.arange(1, new + 1)
            parts.append(torch.stack([(last - window).clamp(min=start), last], dim=1))
            start += old - first + new
        return torch.cat(parts).to(self._device)

    def _tail(self, ratio: int) -> _RingPlan:
        firsts = [old - tail_length(ratio, old) for old, _ in self._spans]
        return _plan_ring(self.places, self._spans, firsts, self.store.spec.tail_rows(ratio), self._device)

    def _table(self, ratio: int) -> PageTable:
        per_page = self.store.spec.page_tokens // ratio
        return PageTable(self._pages_BP * per_page, per_page, self.sequences.sequence_T)

    def _entry_rows(self, ratio: int, blocks: Blocks) -> tuple[Tensor, Tensor | None]:
        """Rows of the entry buffer for the finished entries, and the indices of these entries among all finished ones
        (None = all)."""
        per_page = self.store.spec.page_tokens // ratio
        rows, which, at = [], [], 0
        for place, first, count in zip(self.places, blocks.first_entry, blocks.new_entries, strict=True):
            skip = min(count, max(0, place.entries_from // ratio - first))
            rows += [
                place.pages[entry // per_page] * per_page + entry % per_page
                for entry in range(first + skip, first + count)
            ]
            which += range(at + skip, at + count)
            at += count
        row_N, which_N = (torch.tensor(part, dtype=torch.int64, device=self._device) for part in (rows, which))
        return row_N, None if len(which) == at else which_N


class PagedLayer:
    """One layer of a StepCache: implements dsv4.model.inputs.LayerCache."""

    def __init__(self, step: StepCache, store: LayerStore) -> None:
        self._step, self._store, self._format = step, store, step.store.spec.format

    def join_tail(self, name: TailName, rows_TW: Tensor, blocks: Blocks) -> Tensor:
        plan, rings_SX = self._step._tails[blocks.ratio], self._store.tails[name].flatten(0, 1)
        kept_RX = rings_SX.index_select(0, plan.kept) if plan.kept.numel() else None
        _write(plan, rings_SX, rows_TW)
        return _in_order(plan, kept_RX, rows_TW)

    def append_index(self, entries_NI: Tensor, blocks: Blocks) -> tuple[Tensor, PageTable]:
        assert self._store.index_MX is not None
        self._put(self._store.index_MX, self._format.store_index(entries_NI), blocks)
        return self._store.index_MX, self._step._tables[blocks.ratio]

    def append(self, kv_TC: Tensor, entries_NC: Tensor | None, blocks: Blocks | None) -> KeyBuffer:
        plan, rings_SX = self._step._window, self._store.window_SWX.flatten(0, 1)
        new_TX = self._format.store_entry(kv_TC)
        # NOTE: new rows are read back as they are stored, so that a row has the same values in this step and the next
        new_TC = self._format.read_entry(new_TX, kv_TC.dtype)
        kept_RC = None
        if plan.kept.numel():
            kept_RC = self._format.read_entry(rings_SX.index_select(0, plan.kept), kv_TC.dtype)
        _write(plan, rings_SX, new_TX)
        window_WC = _in_order(plan, kept_RC, new_TC)
        if entries_NC is None or blocks is None:
            return KeyBuffer(window_WC, self._step._window_T2, None)
        assert self._store.entries_MX is not None
        self._put(self._store.entries_MX, self._format.store_entry(entries_NC), blocks)
        entries = Entries(self._store.entries_MX, self._step._tables[blocks.ratio])
        return KeyBuffer(window_WC, self._step._window_T2, entries)

    def _put(self, buffer_MX: Tensor, rows_NX: Tensor, blocks: Blocks) -> None:
        at, which = self._step._targets[blocks.ratio]
        if at.numel():
            buffer_MX.index_copy_(0, at, rows_NX if which is None else rows_NX.index_select(0, which))
