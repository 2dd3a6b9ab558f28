"""LayerCache on pages and slots. All index arithmetic of a step is done once and shared by its layers.

T new tokens, B sequences, W window rows of a step, C entry dim, X tail width, R joined rows, N finished entries,
P pages, I indexer dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.cache.spec import tail_rows
from dsv4.cache.store import CacheStore, LayerStore
from dsv4.kernels.sparse_attention import PageTable
from dsv4.model.inputs import Blocks, KeyBuffer, Sequences, TailName, tail_length


@dataclass(frozen=True, slots=True)
class _Join:
    """Kept rows of slots and new rows, put in order per sequence; and which of them are kept afterwards."""

    kept: Tensor  # rows of the flattened slots to read
    order: Tensor | None  # order of [kept rows, new rows]; None = as they are
    keep: Tensor  # joined rows to keep ...
    keep_at: Tensor  # ... and the rows of the flattened slots they go to


def _join(parts: list[tuple[list[int], int]], keeps: list[tuple[int, list[int]]]) -> _Join:
    """parts: per sequence the slot rows to read and the number of new rows. keeps: per sequence the first joined
    row (counted within it) to keep and the slot rows to write."""
    kept = [row for rows, _ in parts for row in rows]
    order, read, new, keep, keep_at = [], 0, len(kept), [], []
    for (rows, count), (first, targets) in zip(parts, keeps, strict=True):
        start = len(order)
        order += [*range(read, read + len(rows)), *range(new, new + count)]
        read, new = read + len(rows), new + count
        keep += range(start + first, start + first + len(targets))
        keep_at += targets
    in_order = order == list(range(len(order)))
    return _Join(
        torch.tensor(kept, dtype=torch.int64),
        None if in_order else torch.tensor(order),
        torch.tensor(keep, dtype=torch.int64),
        torch.tensor(keep_at, dtype=torch.int64),
    )


def _joined(join: _Join, slots_SX: Tensor, new_TX: Tensor) -> Tensor:
    rows = new_TX
    if join.kept.numel():
        rows = torch.cat([slots_SX.index_select(0, join.kept), new_TX.to(slots_SX.dtype)])
    if join.order is not None:
        rows = rows.index_select(0, join.order)
    if join.keep.numel():
        slots_SX.index_copy_(0, join.keep_at, rows.index_select(0, join.keep).to(slots_SX.dtype))
    return rows


class StepCache:
    """The cache of one forward pass: some sequences of a store, each with its slot and enough pages.

    slots: one per sequence. pages: per sequence, at least as many as its tokens after this step need.
    """

    def __init__(self, store: CacheStore, sequences: Sequences, slots: list[int], pages: list[list[int]]) -> None:
        self.store, self.sequences = store, sequences
        lengths = [b - a for a, b in zip(sequences.borders, sequences.borders[1:], strict=False)]
        self._spans = list(zip(slots, sequences.cached, lengths, strict=True))
        window = store.config.sliding_window
        self._window = _join(
            [
                ([s * window + p % window for p in range(max(0, old - window + 1), old)], new)
                for s, old, new in self._spans
            ],
            [self._ring(s, old, new, window) for s, old, new in self._spans],
        )
        self._window_T2 = self._ranges(window)
        self._tails = {ratio: self._tail(ratio, blocks) for ratio, blocks in sequences.blocks.items()}
        widest = max(len(p) for p in pages)
        self._pages_BP = torch.tensor([p + [0] * (widest - len(p)) for p in pages])
        self._tables = {ratio: self._table(ratio) for ratio in sequences.blocks}
        self._targets = {ratio: self._entry_rows(ratio, blocks, pages) for ratio, blocks in sequences.blocks.items()}

    def layer(self, index: int) -> "PagedLayer":
        return PagedLayer(self, self.store.layers[index])

    @staticmethod
    def _ring(slot: int, old: int, new: int, window: int) -> tuple[int, list[int]]:
        """The last new rows go to their position modulo the window."""
        past, kept = min(old, window - 1), min(new, window)
        return past + new - kept, [slot * window + p % window for p in range(old + new - kept, old + new)]

    def _ranges(self, window: int) -> Tensor:
        """[first, last) of the joined window rows for each new token."""
        parts, start = [], 0
        for _, old, new in self._spans:
            past = min(old, window - 1)
            last = start + past + torch.arange(1, new + 1)
            parts.append(torch.stack([(last - window).clamp(min=start), last], dim=1))
            start += past + new
        return torch.cat(parts)

    def _tail(self, ratio: int, blocks: Blocks) -> _Join:
        size = tail_rows(ratio)
        parts, keeps = [], []
        for (slot, old, new), keep in zip(self._spans, blocks.tails, strict=True):
            length = tail_length(ratio, old)
            parts.append(([slot * size + i for i in range(length)], new))
            keeps.append((length + new - keep, [slot * size + i for i in range(keep)]))
        return _join(parts, keeps)

    def _table(self, ratio: int) -> PageTable:
        per_page = self.store.spec.page_tokens // ratio
        return PageTable(self._pages_BP * per_page, per_page, self.sequences.sequence_T)

    def _entry_rows(self, ratio: int, blocks: Blocks, pages: list[list[int]]) -> Tensor:
        per_page = self.store.spec.page_tokens // ratio
        rows = [
            own[entry // per_page] * per_page + entry % per_page
            for own, first, count in zip(pages, blocks.first_entry, blocks.new_entries, strict=True)
            for entry in range(first, first + count)
        ]
        return torch.tensor(rows, dtype=torch.int64)


class PagedLayer:
    """One layer of a StepCache: implements dsv4.model.inputs.LayerCache."""

    def __init__(self, step: StepCache, store: LayerStore) -> None:
        self._step, self._store = step, store

    def join_tail(self, name: TailName, rows_TW: Tensor, blocks: Blocks) -> Tensor:
        return _joined(self._step._tails[blocks.ratio], self._store.tails[name].flatten(0, 1), rows_TW)

    def append_index(self, entries_NI: Tensor, blocks: Blocks) -> tuple[Tensor, PageTable]:
        assert self._store.index_MI is not None
        self._write(self._store.index_MI, entries_NI, blocks)
        return self._store.index_MI, self._step._tables[blocks.ratio]

    def append(self, kv_TC: Tensor, entries_NC: Tensor | None, blocks: Blocks | None) -> KeyBuffer:
        window_WC = _joined(self._step._window, self._store.window_SWC.flatten(0, 1), kv_TC)
        if entries_NC is None or blocks is None:
            return KeyBuffer(window_WC, self._step._window_T2, None, None)
        assert self._store.entries_MC is not None
        self._write(self._store.entries_MC, entries_NC, blocks)
        return KeyBuffer(window_WC, self._step._window_T2, self._store.entries_MC, self._step._tables[blocks.ratio])

    def _write(self, rows_MC: Tensor, entries_NC: Tensor, blocks: Blocks) -> None:
        if entries_NC.shape[0]:
            rows_MC.index_copy_(0, self._step._targets[blocks.ratio], entries_NC.to(rows_MC.dtype))
