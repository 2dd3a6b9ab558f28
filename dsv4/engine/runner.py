"""From requests to one packed forward pass and back: tokens in, rows of logits out; and the drafts of the next step.

Legend: T tokens, S streams, D hidden size, V vocabulary, N wanted rows.
"""

from dataclasses import dataclass
from itertools import accumulate
from operator import is_

import torch
from torch import Tensor

from dsv4.cache import CacheStore, Place, StepCache
from dsv4.cache.spec import STREAM_ROWS
from dsv4.engine.request import Request
from dsv4.engine.sampler import finite
from dsv4.engine.step import FusedStep, UnfitError, misplaced
from dsv4.engine.trace import StepTrace
from dsv4.generation import TokenTrace
from dsv4.model.inputs import Sequences
from dsv4.model.step import PLAIN
from dsv4.model.transformer import Transformer
from dsv4.model.watch import Watch, WeightWatch, alien
from dsv4.observe import log


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
    trace: StepTrace | None  # where one of the works wants it
    broken: list[int | None]  # of each work: the first position whose numbers are not finite

    def traced(self, which: int, work: Work) -> TokenTrace | None:
        """What was chosen at the positions of a work; None for those that only warm the windows of a reused prefix."""
        skip = max(0, work.request.running_place.entries_from - work.start)
        if self.trace is None or skip >= work.count:
            return None
        return self.trace.rows(work.start + skip, self.first[which] + skip, work.count - skip)


class Runner:
    """Runs steps of one model on one store. predict: keep the prediction block's window up to date and make drafts.

    fused: a step is one native call instead of one per operation; the same bits. None: where that is possible. Raises
    ValueError with the reason where it is asked for and not possible.

    The model may be changed between steps. `notice` says so; what is not this package's own code, or set otherwise than
    the configuration says, is run op by op, and fused again when it is gone.
    """

    def __init__(self, model: Transformer, store: CacheStore, *, predict: bool, fused: bool | None = None) -> None:
        self.model, self.store, self.predict = model, store, predict
        self._fused: FusedStep | None = None
        self._may_fuse = fused is not False
        self._watch, self._weights = Watch(), WeightWatch(model)
        self._seen: tuple[object, ...] = ()
        self._alien: str | None = None
        self._reason: str | None = None
        self.problem: str | None = None  # why no step can run at all
        self.notice()
        if fused and self._fused is None:
            raise ValueError(f"steps cannot be fused: {self._reason}")

    @property
    def fused(self) -> bool:
        """Whether a step is one native call."""
        return self._fused is not None

    def describe(self) -> str:
        """Which step runs, and why it is not the fused one."""
        return "fused" if self.fused else f"op by op ({self._reason or 'as asked'})"

    @property
    def repeats(self) -> bool:
        """Whether what was computed may be used again later: not where foreign code runs, which may do another thing at
        every call, nor with weights whose changes cannot be seen."""
        return self._alien is None and self._weights.counted

    def notice(self, *, thorough: bool = True) -> bool:
        """Whether the model is put together in another way than at the last call; then this runner has adapted. Not
        thorough: what is done around the modules' methods (`parameter.data = ...`, their dictionaries, functions of
        classes) is found some calls later."""
        tables = self._tables()
        same = all(map(is_, tables, self._seen))
        if same and not thorough and self._alien is None and not self._watch.stirred():
            return False
        if same and not self._watch.changed():
            return False
        self._watch.look(self.model, sweep=True)
        self._alien, self.problem = alien(self.model), misplaced(self.model, self.store, self.predict)
        first, before, self._fused, self._reason = not self._seen, self.fused, None, self.problem
        if self._may_fuse and self.problem is None:
            try:
                self._fused = FusedStep(self.model, self.store)
            except UnfitError as reason:
                self._reason = str(reason)
        self._seen, self._weights = tables, WeightWatch(self.model)
        if self.problem or self._alien or (before != self.fused and not first):
            how = "fused" if self.fused else "op by op"
            log("model_runs", steps=how, reason=self._reason or "all is as the configuration says")
        return True

    def weights_changed(self) -> bool:
        """Whether weights were written to since the last call."""
        return self._weights.changed()

    def _tables(self) -> tuple[object, ...]:
        rotary = self.model.rotary
        return getattr(rotary, "plain_P", None), getattr(rotary, "long_P", None)

    def run(self, works: list[Work]) -> Ran:
        """Feed the works through the model; their cache rows are written, their `cached` is left to the caller."""
        first, rows, logits_of, start = [], [], [], 0
        for work in works:
            first.append(start)
            logits_of.append(slice(len(rows), len(rows) + work.wanted))
            rows += range(start + work.count - work.wanted, start + work.count)
            start += work.count
        carry = [self._carry(work) for work in works]
        trace = StepTrace() if any(work.request.trace is not None for work in works) else None
        x_TSD, logits_NV = self._forward(works, rows, trace)
        if self.predict:
            self._remember(works, first, x_TSD)
        broken = _broken(works, first, x_TSD, logits_NV, logits_of)
        return Ran(x_TSD, first, carry, logits_NV, logits_of, trace, broken)

    def draft(self, works: list[Work], ran: Ran) -> None:
        """Bring the prediction block's window up to each request's cached tokens; those that are about to decode get a
        draft. Needs the token after the last cached one, so it runs after sampling."""
        live = [i for i, work in enumerate(works) if work.request.place is not None]
        window = self.store.config.sliding_window
        rows, tokens, starts, places = [], [], [], []
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
            tokens.append(request.tokens[start + 1 : old + 1])
            starts.append(start)
            place = request.running_place
            places.append(Place(place.slot, place.pages, window_from=min(request.predicted_from, start)))
            request.predicted = old
        if not live:
            return
        # NOTE: the end of a prompt runs without a draft: its snapshot serves one token further back, not two
        ready = [n for n, i in enumerate(live) if works[i].request.uncached == 1 and works[i].request.generated]
        logits_NV = self._predict(torch.stack(rows), tokens, starts, places, ready)
        for n, token in zip(ready, logits_NV.argmax(dim=1).tolist(), strict=True):
            works[live[n]].request.drafts = [token]

    def _forward(self, works: list[Work], rows: list[int], trace: StepTrace | None) -> tuple[Tensor, Tensor]:
        """Streams of the works' tokens, and logits of some rows of them. With a trace it runs op by op."""
        places = [work.request.running_place for work in works]
        cached = [work.start for work in works]
        if self._fused is not None and trace is None:
            return self._fused.run([work.tokens for work in works], cached, places, rows)
        tokens = torch.tensor([token for work in works for token in work.tokens])
        sequences = self.model.pack([work.count for work in works], cached)
        regime = PLAIN if trace is None else trace.regime
        x_TSD = self.model.hidden(tokens, sequences, StepCache(self.store, sequences, places), trace, regime)
        return x_TSD, self.model.logits(x_TSD[torch.tensor(rows, dtype=torch.int64)])

    def _predict(
        self, x_TSD: Tensor, tokens: list[list[int]], starts: list[int], places: list[Place], ready: list[int]
    ) -> Tensor:
        """Logits of the prediction block after the last token of those sequences that are `ready`."""
        ends = list(accumulate(map(len, tokens)))
        last = [ends[n] - 1 for n in ready]
        if self._fused is not None:
            return self._fused.predict(x_TSD, tokens, starts, places, last)
        sequences = Sequences.pack([len(part) for part in tokens], (), starts, x_TSD.device)
        cache = StepCache(self.store, sequences, places)
        flat = torch.tensor([token for part in tokens for token in part])
        y_TSD = self.model.mtp_hidden(x_TSD, flat, sequences, cache)
        return self.model.mtp_logits(y_TSD[torch.tensor(last, dtype=torch.int64)])

    def _carry(self, work: Work) -> Tensor | None:
        request = work.request
        if not self.predict or request.predicted >= request.cached:
            return None
        return self.store.streams_SRHD[request.running_place.slot, (request.cached - 1) % STREAM_ROWS].to(
            self.model.numerics.activations, copy=True
        )

    def _remember(self, works: list[Work], first: list[int], x_TSD: Tensor) -> None:
        """Keep the streams of the last tokens: a prefix hit starts the prediction block one position back."""
        for work, start in zip(works, first, strict=True):
            slot = work.request.running_place.slot
            for position in range(max(work.start, work.end - STREAM_ROWS), work.end):
                row = start + position - work.start
                self.store.streams_SRHD[slot, position % STREAM_ROWS].copy_(x_TSD[row])


def _broken(
    works: list[Work], first: list[int], x_TSD: Tensor, logits_NV: Tensor, logits_of: list[slice]
) -> list[int | None]:
    """Where each work's streams or logits stop being finite; two sums where all is well."""
    if finite(x_TSD) and finite(logits_NV):
        return [None] * len(works)
    fine_T, fine_N = x_TSD.isfinite().flatten(1).all(1).tolist(), logits_NV.isfinite().all(1).tolist()
    broken: list[int | None] = []
    for work, start, rows in zip(works, first, logits_of, strict=True):
        of_logits = [True] * (work.count - work.wanted) + fine_N[rows]
        fine = [a and b for a, b in zip(fine_T[start : start + work.count], of_logits, strict=True)]
        broken.append(work.start + fine.index(False) if False in fine else None)
    return broken
