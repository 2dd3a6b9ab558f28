"""Batches of ranks: joined and cut so that all ranks make equally many forward passes, and cut for context ranks.

Legend: T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from dsv4.distributed.context_parallel import ContextSplit
from dsv4.training.batch import Batch


@dataclass(frozen=True, slots=True)
class SplitBatch(Batch):
    """This rank's tokens of a batch whose documents several ranks share, and the two tokens that follow: targets of the
    last rows, which make no row themselves. lengths: of all documents, as the model packs them."""

    split: ContextSplit
    all: Batch

    AHEAD: ClassVar[int] = 2

    @classmethod
    def of(cls, batch: Batch, split: ContextSplit) -> "SplitBatch":
        first, last = split.span[0], split.span[1] + cls.AHEAD
        # after the last token comes the first, as where one process turns the batch around
        tokens_T, learn_T = (torch.cat([t, t[: cls.AHEAD]])[first:last] for t in (batch.tokens_T, batch.learn_T))
        return cls(tokens_T, batch.lengths, learn_T, split, batch)

    def __post_init__(self) -> None:
        pass  # the whole batch was checked

    def weights(self, ahead: int) -> Tensor:
        """See Batch.weights; 0 for the tokens that make no row."""
        first, last = self.split.span
        return torch.nn.functional.pad(self.all.weights(ahead)[first:last], (0, self.AHEAD))


def join_batches(batches: Sequence[Batch], least: int) -> list[Batch]:
    """The same documents in batches of at least `least` tokens: a shorter one joins the one before, or after."""
    found: list[Batch] = []
    for batch in batches:
        if found and min(len(found[-1].tokens_T), len(batch.tokens_T)) < least:
            batch = _joined(found.pop(), batch)
        found.append(batch)
    if len(found) > 1 and len(found[-1].tokens_T) < least:
        last = found.pop()
        found.append(_joined(found.pop(), last))
    return found


def _joined(a: Batch, b: Batch) -> Batch:
    return Batch(torch.cat([a.tokens_T, b.tokens_T]), a.lengths + b.lengths, torch.cat([a.learn_T, b.learn_T]))


def cut_batches(batches: Sequence[Batch], count: int, least: int = 1) -> list[Batch]:
    """The same documents in `count` batches of at least `least` tokens: the largest that can be cut is cut between two
    documents until there are enough. Raises ValueError if that is impossible."""
    found = list(batches)
    while len(found) < count:
        for at in sorted(range(len(found)), key=lambda i: -len(found[i].tokens_T)):
            halves = _halves(found[at], least)
            if halves:
                found[at : at + 1] = halves
                break
        else:
            raise ValueError(
                f"other ranks have {count} micro-batches in this step, but {len(found)} of this rank cannot be cut "
                f"further into parts of at least {least} tokens; raise data.micro or shorten the documents"
            )
    return found


def _halves(batch: Batch, least: int) -> list[Batch]:
    """Cut at the border between documents that is nearest to the middle; nothing where no border leaves enough."""
    tokens = len(batch.tokens_T)
    borders = list(accumulate(batch.lengths))[:-1]
    possible = [i for i, border in enumerate(borders) if least <= border <= tokens - least]
    if not possible:
        return []
    number = min(possible, key=lambda i: abs(borders[i] - tokens / 2))
    at, number = borders[number], number + 1
    return [
        Batch(batch.tokens_T[:at], batch.lengths[:number], batch.learn_T[:at]),
        Batch(batch.tokens_T[at:], batch.lengths[number:], batch.learn_T[at:]),
    ]
