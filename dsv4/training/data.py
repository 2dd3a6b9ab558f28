"""The batches of each step: documents shuffled, mixed, reordered for fill-in-the-middle, and packed.

A `Position` holds how far every source has been read. Batches depend on nothing else, so a run resumes at the next
token, and a repeated step gets the same batch.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from dsv4.training.batch import Batch
from dsv4.training.documents import (
    Codec,
    Document,
    GeneratedDocuments,
    ReadProgress,
    Source,
    TokenShard,
    shard_of,
)
from dsv4.training.packing import best_fit, cut
from dsv4.training.recipe import Recipe
from dsv4.training.schedule import Schedule
from dsv4.training.settings import DataSettings, SourceSettings

_log = logging.getLogger(__name__)

FIM_TOKENS = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run has read. tokens: seen so far. next: the next document of each source. given: tokens that each
    source has given at this sequence length. Both are those of the current pool, which is packed to `length`; bin
    is the next sequence of the pool."""

    tokens: int
    next: tuple[int, ...]
    given: tuple[int, ...]
    length: int
    bin: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "next": self.next, "given": self.given, "length": self.length, "bin": self.bin}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        return cls(raw["tokens"], tuple(raw["next"]), tuple(raw["given"]), raw["length"], raw["bin"])


@dataclass(frozen=True, slots=True)
class _Pool:
    """Sequences packed together, and the positions of the sources after them."""

    bins: tuple[tuple[Document, ...], ...]
    next: tuple[int, ...]
    given: tuple[int, ...]


class BatchReader:
    """Batches by step.

    fetch(step) works for the next step and for any earlier one that `forget` has not dropped. All ranks read the same
    sequences and keep every `world`-th of them.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        data: DataSettings,
        schedule: Schedule,
        codec: Codec,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start: tuple[int, Position] | None = None,
    ) -> None:
        self._sources, self._data, self._schedule, self._codec = sources, data, schedule, codec
        self._seed, self._rank, self._world = seed, rank, world
        self._fim = [codec.token_id(token) for token in FIM_TOKENS] if data.fim else []
        zeros = (0,) * len(sources)
        step, position = start or (0, Position(0, zeros, zeros, schedule.at(0).stage.length))
        if len(position.next) != len(sources):
            raise ValueError(f"the run was started with {len(position.next)} sources, now there are {len(sources)}")
        self._positions = {step: position}
        self._kept: tuple[Position, _Pool] | None = None

    def position(self, step: int) -> Position:
        """The position before `step`, which was fetched or follows the last fetched one."""
        return self._positions[step]

    def forget(self, before: int) -> None:
        """Drop the positions of steps before this one."""
        self._positions = {step: p for step, p in self._positions.items() if step >= before}

    def fetch(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step, at least one. A stage's first step starts a new pool of its length."""
        while step not in self._positions:
            newest = max(self._positions)
            if step < newest:
                raise KeyError(f"step {step} has been forgotten")
            self._advance(newest)
        sequences = self._advance(step)
        return list(self._micro(sequences[self._rank :: self._world]))

    def _advance(self, step: int) -> list[tuple[Document, ...]]:
        """The sequences of a step of all ranks; the position after it is kept."""
        position = self._positions[step]
        settings = self._schedule.at(position.tokens)
        length, tokens = settings.stage.length, position.tokens
        if position.length != length:
            position = Position(tokens, self._pool(position).next, (0,) * len(self._sources), length)
        taken: list[tuple[Document, ...]] = []
        seen = 0
        while seen < settings.batch_tokens or len(taken) % self._world:
            pool = self._pool(position)
            if position.bin == len(pool.bins):
                position = Position(tokens, pool.next, pool.given, length)
                continue
            taken.append(pool.bins[position.bin])
            seen += sum(len(document.tokens) for document in taken[-1])
            position = Position(tokens, position.next, position.given, length, position.bin + 1)
        self._positions[step + 1] = Position(tokens + seen, position.next, position.given, length, position.bin)
        return taken

    def _micro(self, sequences: Sequence[tuple[Document, ...]]) -> Iterator[Batch]:
        gathered: list[Document] = []
        for sequence in sequences:
            size = sum(len(d.tokens) for d in (*gathered, *sequence))
            if gathered and size > self._data.micro:
                yield batch_of(gathered)
                gathered = []
            gathered += sequence
        yield batch_of(gathered)

    def _pool(self, position: Position) -> _Pool:
        """The pool that `position` reads from."""
        key = Position(0, position.next, position.given, position.length)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self._make_pool(key)
        return self._kept[1]

    def _make_pool(self, at: Position) -> _Pool:
        following, given = list(at.next), list(at.given)
        pieces: list[Document] = []
        wanted = at.length * self._data.pool
        weights = {i: s.weight for i, s in enumerate(self._data.sources) if s.used_at(at.length)}
        share = sum(weights.values())
        while wanted > 0:
            # the source that is furthest behind its share
            behind = {i: w / share * (sum(given) + 1) - given[i] for i, w in weights.items()}
            which = max(behind, key=lambda i: behind[i])
            document = self._document(which, following[which])
            following[which] += 1
            parts = list(_pieces(document, at.length, self._data.sources[which]))
            tokens = sum(len(part.tokens) for part in parts)
            given[which] += tokens
            wanted -= tokens
            pieces += parts
        bins = best_fit([len(p.tokens) for p in pieces], at.length)
        order = random.Random(f"{self._seed}/bins/{at.next}").sample(range(len(bins)), len(bins))
        return _Pool(tuple(tuple(pieces[i] for i in bins[b]) for b in order), tuple(following), tuple(given))

    def _document(self, which: int, number: int) -> Document:
        source = self._sources[which]
        if source.count is None:
            return source.document(number)
        epoch, place = divmod(number, source.count)
        document = source.document(int(_order(source.count, self._seed, which, epoch)[place]))
        rng = random.Random(f"{self._seed}/fim/{which}/{number}")
        if document.learn is not None:  # a conversation is told in its order
            return document
        return self._told_out_of_order(document, rng) if rng.random() < self._data.fim else document

    def _told_out_of_order(self, document: Document, rng: random.Random) -> Document:
        """Fill-in-the-middle, prefix-suffix-middle: everything between the begin and end tokens is cut twice."""
        tokens = document.tokens
        if len(tokens) < 5:
            return document
        a, b = sorted(rng.sample(range(2, len(tokens) - 1), 2))
        begin, hole, end = ([token] for token in self._fim)
        parts = (tokens[:1], begin, tokens[1:a], hole, tokens[b:-1], end, tokens[a:b], tokens[-1:])
        return Document(np.concatenate(parts, dtype=np.int64))


@lru_cache(maxsize=8)
def _order(count: int, seed: int, which: int, epoch: int) -> np.ndarray:
    """A shuffle of a source's documents, another one in every epoch."""
    return np.random.default_rng([seed, which, epoch]).permutation(count)


def _pieces(document: Document, length: int, settings: SourceSettings) -> Iterator[Document]:
    """A document that fits, or what of it does: nothing, its beginning, or all of it in pieces."""
    if len(document.tokens) <= length:
        yield document
        return
    if settings.kind == "messages":
        if settings.longer == "cut" and document.learn is not None and any(document.learn[:length]):
            yield Document(document.tokens[:length], document.learn[:length])
        return
    for first, last in cut(len(document.tokens), length):
        learn = None if document.learn is None else document.learn[first:last]
        yield Document(document.tokens[first:last], learn)


def batch_of(documents: Sequence[Document]) -> Batch:
    """Documents packed one after another."""
    lengths = tuple(len(d.tokens) for d in documents)
    tokens = np.concatenate([d.tokens for d in documents], dtype=np.int64)
    each = [np.ones(n) if d.learn is None else d.learn for n, d in zip(lengths, documents, strict=True)]
    return Batch(torch.from_numpy(tokens), lengths, torch.from_numpy(np.concatenate(each, dtype=np.float32)))


def open_sources(recipe: Recipe, codec: Codec, folder: Path, progress: ReadProgress | None = None) -> list[Source]:
    """The sources of a recipe; shards are made under `folder` where they are missing."""
    found: list[Source] = []
    for settings in recipe.data.sources:
        if settings.kind == "generator":
            found.append(GeneratedDocuments(settings, codec, recipe.seed))
            continue
        shard = shard_of(settings, codec, folder, progress)
        if settings.kind == "messages":
            for length in sorted({stage.length for stage in recipe.stages if settings.used_at(stage.length)}):
                _tell_of_longer(settings, shard, length)
        found.append(shard)
    return found


def _tell_of_longer(settings: SourceSettings, shard: TokenShard, length: int) -> None:
    """Warn of conversations that are longer than the sequences; raise ValueError where none is left."""
    longer = np.flatnonzero(shard.lengths > length)
    if not len(longer):
        return
    kept = [n for n in longer if any(_pieces(shard.document(int(n)), length, settings))]
    what = f"source {settings.name}: {len(longer):,} of {shard.count:,} examples have more than {length:,} tokens"
    if len(longer) == shard.count and not kept:
        raise ValueError(f'{what}, none can be learned: longer sequences (stages.length), or longer = "cut"')
    cut = f"{len(kept):,} are cut there, " if settings.longer == "cut" else ""
    _log.warning("%s: %s%s are left out", what, cut, f"{len(longer) - len(kept):,}")
