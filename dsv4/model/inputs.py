"""The model's inputs: packed sequences, and the cache that it reads and writes through a protocol.

Legend: T tokens (the new ones of all sequences, one after another), B sequences, C head dim, W window rows, W
projection width (of a compressor), N finished entries (in this step), m tokens per entry, R gathered rows (kept
tails, then new tokens), M entry rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from dsv4.config import overlaps, tail_length
from dsv4.kernels.sparse_attention import PageTable

TailName = Literal["main", "index"]


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of one compression ratio in this step. Row numbers refer to the joined layout: for each sequence its
    kept tail, then its new tokens."""

    ratio: int
    joined: tuple[int, ...]  # borders of the sequences among the joined rows
    own_Nm: Tensor  # rows of each finished block
    previous_Nm: Tensor | None  # rows of the block before it, -1 = none; only with overlap
    position_N: Tensor  # first token of each finished block: where its entry is rotated to
    first_entry: tuple[int, ...]  # per sequence: entries that already exist
    new_entries: tuple[int, ...]  # per sequence: entries finished in this step
    visible_T: Tensor  # entries each new token may see: (position + 1) // ratio
    longest: int  # the largest visible_T
    tails: tuple[int, ...]  # per sequence: rows to keep for the next step, counted from the end of its joined rows


@dataclass(frozen=True, slots=True)
class Sequences:
    """A packed batch: the new tokens of several sequences, each after the tokens it already has in its cache.

    Training documents, chunked prefill and decode have the same form; there is no padding.
    """

    borders: tuple[int, ...]  # 0, ..., T
    cached: tuple[int, ...]  # tokens before the first new one, per sequence
    positions_T: Tensor  # int64
    sequence_T: Tensor  # int64
    blocks: Mapping[int, Blocks]

    @classmethod
    def pack(
        cls,
        lengths: Sequence[int],
        ratios: Sequence[int],
        cached: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> "Sequences":
        """Lay out `lengths` new tokens per sequence. `ratios`: the model's compression ratios.

        Raises ValueError for an empty batch, an empty sequence or a negative count.
        """
        cached = tuple(cached) if cached is not None else (0,) * len(lengths)
        if not lengths or len(cached) != len(lengths):
            raise ValueError(f"lengths and cached must be equally long and not empty, got {lengths}, {cached}")
        for i, (new, old) in enumerate(zip(lengths, cached, strict=True)):
            if new < 1 or old < 0:
                raise ValueError(f"sequence {i} needs at least 1 new token and cached >= 0, got {new} and {old}")
        borders = (0, *torch.tensor(lengths).cumsum(0).tolist())
        spans = list(zip(cached, lengths, strict=True))
        positions = torch.cat([torch.arange(old, old + new) for old, new in spans])
        sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        blocks = {ratio: _blocks(ratio, spans, positions, device) for ratio in ratios}
        return cls(borders, cached, positions.to(device), sequence.to(device), blocks)

    @property
    def tokens(self) -> int:
        return self.borders[-1]


def _blocks(ratio: int, spans: list[tuple[int, int]], positions_T: Tensor, device: torch.device | str) -> Blocks:
    joined, own, previous, starts, first_entry, new_entries, tails = [0], [], [], [], [], [], []
    for old, new in spans:
        kept = tail_length(ratio, old)
        first, count = old // ratio, (old + new) // ratio - old // ratio
        block_N1 = torch.arange(first, first + count)[:, None] * ratio
        row_Nm = joined[-1] + block_N1 + torch.arange(ratio) - (old - kept)
        own.append(row_Nm)
        previous.append(torch.where(block_N1 > 0, row_Nm - ratio, -1))
        starts.append(block_N1.flatten())
        first_entry.append(first)
        new_entries.append(count)
        tails.append(tail_length(ratio, old + new))
        joined.append(joined[-1] + kept + new)
    visible = (positions_T + 1) // ratio
    return Blocks(
        ratio=ratio,
        joined=tuple(joined),
        own_Nm=torch.cat(own).to(device),
        previous_Nm=torch.cat(previous).to(device) if overlaps(ratio) else None,
        position_N=torch.cat(starts).to(device),
        first_entry=tuple(first_entry),
        new_entries=tuple(new_entries),
        visible_T=visible.to(device),
        longest=int(visible.max()),
        tails=tuple(tails),
    )


@dataclass(frozen=True, slots=True)
class Entries:
    """Compressed entries of a layer, and the rows of each sequence."""

    rows_MC: Tensor
    pages: PageTable


@dataclass(frozen=True, slots=True)
class KeyBuffer:
    """A layer's keys after the new ones were added. W window rows, M entry rows."""

    window_WC: Tensor  # uncompressed rows of this step's sequences: what their windows still reach, then the new
    window_T2: Tensor  # [first, last) of window_WC for each new token
    entries: Entries | None  # None in a layer without compression

    @property
    def compressed(self) -> Entries:
        """The entries of a layer that compresses."""
        assert self.entries is not None
        return self.entries


class LayerCache(Protocol):
    """One layer's memory of the sequences of a step. Calls come in this order, each at most once per step."""

    def join_tail(self, name: TailName, rows_TW: Tensor, blocks: Blocks) -> Tensor:
        """The rows a compressor needs: kept tails and new rows joined, [R, W]; keeps the new tails."""
        ...

    def append_index(self, entries_NI: Tensor, blocks: Blocks) -> tuple[Tensor, PageTable]:
        """Add finished indexer keys; returns all rows [M, I] and the rows of each sequence's entries."""
        ...

    def append(self, kv_TC: Tensor, entries_NC: Tensor | None, blocks: Blocks | None) -> KeyBuffer:
        """Add window rows and finished compressed entries; returns the keys for attention."""
        ...


class ModelCache(Protocol):
    """The memory of all layers for one step; prediction layers follow the backbone's."""

    def layer(self, index: int) -> LayerCache: ...


class FreshCache:
    """Sequences without cached tokens; nothing is kept after the step. Differentiable, so training uses it.

    Serves every layer (it holds no state): `layer(i)` is the object itself.
    """

    def __init__(self, sequences: Sequences, window: int) -> None:
        if any(sequences.cached):
            raise ValueError("FreshCache needs sequences without cached tokens")
        self._sequences = sequences
        device = sequences.positions_T.device
        row_T = torch.arange(sequences.tokens, device=device)
        first_T = torch.maximum(row_T - sequences.positions_T, row_T - (window - 1))
        self._window_T2 = torch.stack([first_T, row_T + 1], dim=1)

    def layer(self, index: int) -> "FreshCache":
        return self

    def join_tail(self, name: TailName, rows_TW: Tensor, blocks: Blocks) -> Tensor:
        return rows_TW

    def append_index(self, entries_NI: Tensor, blocks: Blocks) -> tuple[Tensor, PageTable]:
        return entries_NI, self._pages(blocks)

    def append(self, kv_TC: Tensor, entries_NC: Tensor | None, blocks: Blocks | None) -> KeyBuffer:
        if entries_NC is None or blocks is None:
            return KeyBuffer(kv_TC, self._window_T2, None)
        return KeyBuffer(kv_TC, self._window_T2, Entries(entries_NC, self._pages(blocks)))

    def _pages(self, blocks: Blocks) -> PageTable:
        """One page per sequence, as long as it needs."""
        first = [0]
        for count in blocks.new_entries[:-1]:
            first.append(first[-1] + count)
        first_B1 = torch.tensor(first, device=self._window_T2.device)[:, None]
        return PageTable(first_B1, max(1, blocks.longest), self._sequences.sequence_T)
