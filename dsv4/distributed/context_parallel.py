"""One packed batch on several ranks, cut anywhere: two-stage context parallelism for compressed attention (report 3.5).

A rank holds a stretch of the batch's tokens. For its layers a document that began on the rank before is a sequence with
cached tokens, which the model knows from decoding; `ContextCache` gets from the neighbour what a cache would hold.
Stage one: the rank before sends its last window rows and, for each compressor, the rows that no finished entry covers
(with overlap those of the last block too). Stage two: entries and indexer keys finished on each rank are gathered on
all.
In the order of ranks they lie as in one process, so visible ranges and chosen numbers mean the same.

Legend: T tokens (of this rank), C head dim, W projection width, N finished entries, I indexer dim,
B sequences (documents), E experts, K choices per token, X numbers of a row.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsv4.config import ModelConfig, tail_length, tail_rows
from dsv4.distributed.collectives import exchange, gather_rows
from dsv4.kernels.sparse_attention import PageTable
from dsv4.model.inputs import Blocks, Entries, KeyBuffer, Sequences, TailName
from dsv4.model.step import Observer
from dsv4.training.balance import Choices, affinity_share


def reach(config: ModelConfig) -> int:
    """How many tokens before its first one a rank needs rows of: for its window and for every compressor's tail."""
    tails = [tail_rows(ratio) - 1 for ratio in config.compressor_ratios]
    return max([config.sliding_window - 1, 1, *tails])


@dataclass(frozen=True, slots=True)
class DocumentSpan:
    """Tokens first..last of a document, as positions within it."""

    document: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ContextSplit:
    """Which rank holds which tokens of a packed batch: equal stretches, the first ones a token longer if need be."""

    lengths: tuple[int, ...]
    rank: int
    ranks: int

    @classmethod
    def of(cls, lengths: Sequence[int], rank: int, ranks: int, reach: int) -> "ContextSplit":
        """Raises ValueError where a rank's stretch would be shorter than what its neighbour needs of it."""
        if sum(lengths) < ranks * reach:
            raise ValueError(
                f"scale.context {ranks}: each rank needs at least {reach} tokens of a batch (window and open blocks "
                f"reach that far back), but {sum(lengths)} tokens give {sum(lengths) // ranks}; use longer sequences "
                f"or fewer context ranks"
            )
        return cls(tuple(lengths), rank, ranks)

    @property
    def cuts(self) -> tuple[int, ...]:
        """Borders of the ranks' stretches: 0, ..., all tokens."""
        each, more = divmod(sum(self.lengths), self.ranks)
        return tuple(accumulate((each + (rank < more) for rank in range(self.ranks)), initial=0))

    @property
    def span(self) -> tuple[int, int]:
        """First and last token of this rank."""
        return self.cuts[self.rank], self.cuts[self.rank + 1]

    def pieces(self, rank: int) -> list[DocumentSpan]:
        """The pieces of documents that a rank holds, in order."""
        first, last = self.cuts[rank], self.cuts[rank + 1]
        found = []
        for document, (begin, end) in enumerate(pairwise(accumulate(self.lengths, initial=0))):
            if begin < last and end > first:
                found.append(DocumentSpan(document, max(first, begin) - begin, min(last, end) - begin))
        return found

    def entries(self, ratio: int) -> list[int]:
        """How many entries each rank finishes."""
        return [sum(p.last // ratio - p.first // ratio for p in self.pieces(rank)) for rank in range(self.ranks)]

    def open_at(self, rank: int) -> int:
        """Tokens that the document at the beginning of a rank has on the ranks before; 0 where one begins."""
        return self.pieces(rank)[0].first if rank < self.ranks else 0


@dataclass(frozen=True, slots=True)
class LocalSequences(Sequences):
    """This rank's stretch of a packed batch."""

    split: ContextSplit

    @classmethod
    def cut(cls, split: ContextSplit, ratios: Sequence[int], device: torch.device | str) -> "LocalSequences":
        pieces = split.pieces(split.rank)
        packed = Sequences.pack([p.last - p.first for p in pieces], ratios, [p.first for p in pieces], device)
        return cls(**{f.name: getattr(packed, f.name) for f in fields(Sequences)}, split=split)


class ContextCache:
    """The LayerCache of a context group: rows that other ranks computed, differentiable.

    It has no state, so it serves every layer. All ranks of the group must make the same calls.
    """

    def __init__(self, sequences: LocalSequences, window: int, group: Any) -> None:
        self._sequences, self._split, self._group = sequences, sequences.split, group
        self._kept = window - 1
        device = sequences.positions_T.device
        row_T = torch.arange(sequences.tokens, device=device)
        first_T = torch.maximum(row_T - sequences.positions_T, row_T - self._kept)
        before = min(self._kept, self._split.open_at(self._split.rank))
        self._window_T2 = torch.stack([first_T, row_T + 1], dim=1) + before

    def layer(self, index: int) -> "ContextCache":
        return self

    def join_tail(self, name: TailName, rows_TW: Tensor, blocks: Blocks) -> Tensor:
        """The neighbour's open rows, then this rank's: only its first document can have any."""
        return self._behind(rows_TW, lambda tokens: tail_length(blocks.ratio, tokens))

    def append_index(self, entries_NI: Tensor, blocks: Blocks) -> tuple[Tensor, PageTable]:
        return self._gather(entries_NI, blocks), self._pages(blocks)

    def append(self, kv_TC: Tensor, entries_NC: Tensor | None, blocks: Blocks | None) -> KeyBuffer:
        window_WC = self._behind(kv_TC, lambda tokens: min(self._kept, tokens))
        if entries_NC is None or blocks is None:
            return KeyBuffer(window_WC, self._window_T2, None)
        entries = Entries(self._gather(entries_NC, blocks), self._pages(blocks))
        return KeyBuffer(window_WC, self._window_T2, entries)

    def _behind(self, rows_TX: Tensor, needed: Any) -> Tensor:
        """The last rows of the previous rank, then this rank's. needed(n): how many rows a document needs that has n
        tokens on the previous ranks."""
        split = self._split
        give, take = needed(split.open_at(split.rank + 1)), needed(split.open_at(split.rank))
        send, receive = [0] * split.ranks, [0] * split.ranks
        if split.rank + 1 < split.ranks:
            send[split.rank + 1] = give
        if split.rank:
            receive[split.rank - 1] = take
        rows = exchange(rows_TX[len(rows_TX) - sum(send) :], send, receive, self._group)
        return torch.cat([rows, rows_TX])

    def _gather(self, entries_NX: Tensor, blocks: Blocks) -> Tensor:
        return gather_rows(entries_NX, self._split.entries(blocks.ratio), self._group)

    def _pages(self, blocks: Blocks) -> PageTable:
        """One page per document, as long as it needs; entries of all documents lie one after another."""
        counts = [length // blocks.ratio for length in self._split.lengths]
        first = list(accumulate(counts, initial=0))
        here = [first[piece.document] for piece in self._split.pieces(self._split.rank)]
        first_B1 = torch.tensor(here, device=self._window_T2.device)[:, None]
        return PageTable(first_B1, max(1, blocks.longest), self._sequences.sequence_T)


@torch.no_grad()
def sum_documents(values_BX: Tensor, split: ContextSplit, group: Any) -> Tensor:
    """Numbers of this rank's documents, each added over the ranks that hold a piece of it. All ranks must call it."""
    pieces = split.pieces(split.rank)
    first, last = pieces[0].document, pieces[-1].document + 1
    every = values_BX.new_zeros(len(split.lengths), *values_BX.shape[1:])
    every[first:last] = values_BX
    dist.all_reduce(every, group=group)
    return every[first:last]


class BalanceObserver:
    """Wraps another observer and computes what its balance loss lacks: that observer sees only this rank's pieces, but
    the loss counts the choices of all tokens of a document. All ranks of the group must make the same calls.

    layers: those with a learned router.
    """

    def __init__(self, inner: Observer, sequences: LocalSequences, layers: Collection[int], group: Any) -> None:
        self._inner, self._sequences, self._layers, self._group = inner, sequences, layers, group
        self.found: list[Tensor] = []
        self.open = True  # recomputed blocks call again in the backward pass

    def routed(self, layer: int, score_TE: Tensor, ids_TK: Tensor) -> None:
        self._inner.routed(layer, score_TE, ids_TK)
        if layer in self._layers:
            value = lacking_balance(score_TE, ids_TK, self._sequences, self._group)
            if self.open:
                self.found.append(value)


def lacking_balance(score_TE: Tensor, ids_TK: Tensor, sequences: LocalSequences, group: Any) -> Tensor:
    """What to add to the balance loss of this rank's pieces so that, added over ranks, it is that of whole documents.

    The loss is sum of f_e * (sum over tokens of the affinity's share), f_e = E / (K tokens) * times chosen, so a rank's
    part needs f_e of the whole document and shares of its own tokens only. Differentiable in score_TE.
    """
    experts, k = score_TE.shape[1], ids_TK.shape[1]
    documents, sequence_T = len(sequences.cached), sequences.sequence_T
    share_BE = affinity_share(score_TE, sequence_T, documents)
    own = Choices.of(ids_TK, sequence_T, documents, experts)
    sums = sum_documents(torch.cat([own.chosen_BE, own.tokens_B1], dim=1), sequences.split, group)
    whole = Choices(sums[:, :experts], sums[:, experts:])
    return ((whole.frequency(k, share_BE.dtype) - own.frequency(k, share_BE.dtype)) * share_BE).sum()
