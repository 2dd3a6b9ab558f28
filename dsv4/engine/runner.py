"""From requests to one packed forward pass and back: tokens in, rows of logits out; and the drafts of the next step.

T tokens of a step, S residual streams, D hidden size, V vocabulary, N rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4.cache import CacheStore, Place, StepCache
from dsv4.cache.spec import STREAM_ROWS
from dsv4.engine.request import Request
from dsv4.model.inputs import Sequences
from dsv4.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Work:
    """Positions start..end-1 of a request go into the step. tokens: of those known, then of its drafts. wanted: rows of
    logits to compute, from the last known token on."""

    request: Request
    start: int
    tokens: list[int]
    wanted: int

    @classmethod
    def of(cls, request: Request, count: int) -> "Work":
        """The next `count` tokens."""
        end = request.cached + count
        fed = request.tokens[request.cached : end]
        fed += request.drafts[: count - len(fed)]
        return cls(request, request.cached, fed, max(0, end - len(request.tokens) + 1))

    @property
    def count(self) -> int:
        return len(self.tokens)

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Ran:
    """What a step left behind. first: the step's row of each work's first token; carry: the streams of the token before
    it, where the prediction block still needs them."""

    x_TSD: Tensor
    first: list[int]
    carry: list[Tensor | None]
    logits_NV: Tensor
    logits_of: list[slice]


class Runner:
    """Runs steps of one model on one store. predict: keep the prediction block's window up to date and make drafts."""

    def __init__(self, model: Transformer, store: CacheStore, *, predict: bool) -> None:
        self.model, self.store, self.predict = model, store, predict

    def run(self, works: list[Work]) -> Ran:
        """Feed the works through the model; their cache rows are written, their `cached` is left to the caller."""
        tokens = [token for work in works for token in work.tokens]
        sequences = self.model.pack([work.count for work in works], [work.start for work in works])
        places = [_place(work.request) for work in works]
        x_TSD = self.model.hidden(torch.tensor(tokens), sequences, StepCache(self.store, sequences, places))
        first = list(sequences.borders[:-1])
        carry = [self._carry(work) for work in works]
        if self.predict:
            self._remember(works, first, x_TSD)
        rows, logits_of = [], []
        for work, start in zip(works, first, strict=True):
            logits_of.append(slice(len(rows), len(rows) + work.wanted))
            rows += range(start + work.count - work.wanted, start + work.count)
        return Ran(x_TSD, first, carry, self.model.logits(x_TSD[torch.tensor(rows, dtype=torch.int64)]), logits_of)

    def draft(self, works: list[Work], ran: Ran) -> None:
        """Bring the prediction block's window up to each request's cached tokens; those that are about to decode get a
        draft. Needs the token after the last cached one, so it runs after sampling."""
        live = [i for i, work in enumerate(works) if work.request.place is not None]
        window = self.store.config.sliding_window
        rows, tokens, lengths, starts, places = [], [], [], [], []
        for i in live:
            request, old = works[i].request, works[i].request.cached
            start = max(request.predicted, old - window)
            if start > request.predicted:
                request.predicted_from = start
            for position in range(start, old):
                carried = (
                    ran.carry[i] if position < works[i].start else ran.x_TSD[ran.first[i] + position - works[i].start]
                )
                assert carried is not None
                rows.append(carried)
            tokens += request.tokens[start + 1 : old + 1]
            lengths.append(old - start)
            starts.append(start)
            place = _place(request)
            places.append(Place(place.slot, place.pages, window_from=min(request.predicted_from, start)))
            request.predicted = old
        if not live:
            return
        sequences = Sequences.pack(lengths, (), starts, ran.x_TSD.device)
        cache = StepCache(self.store, sequences, places)
        y_TSD = self.model.mtp_hidden(torch.stack(rows), torch.tensor(tokens), sequences, cache)
        # NOTE: the end of a prompt runs without a draft: its snapshot serves one token further back, not two
        ready = [n for n, i in enumerate(live) if works[i].request.uncached == 1 and works[i].request.generated]
        last = torch.tensor([sequences.borders[n + 1] - 1 for n in ready], dtype=torch.int64)
        for n, token in zip(ready, self.model.mtp_logits(y_TSD[last]).argmax(dim=1).tolist(), strict=True):
            works[live[n]].request.drafts = [token]

    def _carry(self, work: Work) -> Tensor | None:
        request = work.request
        if not self.predict or request.predicted >= request.cached:
            return None
        assert request.place is not None
        return self.store.streams_SRHD[request.place.slot, (request.cached - 1) % STREAM_ROWS].to(
            self.model.numerics.activations, copy=True
        )

    def _remember(self, works: list[Work], first: list[int], x_TSD: Tensor) -> None:
        """Keep the streams of the last tokens: a prefix hit starts the prediction block one position back."""
        for work, start in zip(works, first, strict=True):
            slot = _place(work.request).slot
            for position in range(max(work.start, work.end - STREAM_ROWS), work.end):
                row = start + position - work.start
                self.store.streams_SRHD[slot, position % STREAM_ROWS].copy_(x_TSD[row])


def _place(request: Request) -> Place:
    assert request.place is not None, "the request has no place in the cache"
    return request.place
