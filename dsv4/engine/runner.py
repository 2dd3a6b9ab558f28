"""One packed forward pass for the chunks of a step: tokens in, rows of logits out; and the drafts of the next step.

Legend: T tokens, S streams, D hidden size, V vocabulary, N wanted rows.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from operator import is_
from typing import Protocol

import torch
from torch import Tensor

from dsv4.cache import CacheStore, Place, StepCache
from dsv4.engine.draft_blocks import DraftBlocks
from dsv4.engine.draft_pace import DraftPace, HeadRecord, Pace
from dsv4.engine.expert_use import ExpertUse
from dsv4.engine.lookup_drafts import LookupDrafts
from dsv4.engine.request import Request
from dsv4.engine.sampler import finite
from dsv4.engine.step import FusedStep, UnfitError, misplaced
from dsv4.engine.trace import StepTrace
from dsv4.generation import TokenTrace
from dsv4.kernels.native.places import ThreadPlaces
from dsv4.model.inputs import Sequences
from dsv4.model.step import PLAIN
from dsv4.model.transformer import Transformer
from dsv4.model.watch import Watch, WeightWatch, alien
from dsv4.observe import log


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of a request that one step computes: positions start to end - 1. tokens: known tokens, then drafts.
    wanted: the number of rows of logits, counted from the end; they begin at the last known token."""

    request: Request
    start: int
    tokens: list[int]
    wanted: int

    @classmethod
    def of(cls, request: Request, count: int) -> "Chunk":
        """The next `count` tokens of a request."""
        end = request.cached + count
        fed = request.tokens[request.cached : end]
        fed += request.drafts[: count - len(fed)]
        return cls(request, request.cached, fed, max(0, end - len(request.tokens) + 1))

    @property
    def drafts(self) -> list[int]:
        """The drafts among the tokens."""
        return self.tokens[self.count - self.wanted + 1 :] if self.wanted else []

    @property
    def count(self) -> int:
        return len(self.tokens)

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The results of a step. first: the row of the first token of each chunk. carry: the streams of the token before
    it, if the prediction block still needs them. logits_of: the rows of logits of each chunk."""

    x_TSD: Tensor
    first: list[int]
    carry: list[Tensor | None]
    logits_NV: Tensor
    logits_of: list[slice]
    trace: StepTrace | None  # if the request of a chunk is traced
    broken: list[int | None]  # for each chunk, the first position whose numbers are not finite

    def traced(self, which: int, chunk: Chunk) -> TokenTrace | None:
        """The trace of the positions of a chunk; None if they only compute the windows of a reused prefix again."""
        skip = max(0, chunk.request.running_place.entries_from - chunk.start)
        if self.trace is None or skip >= chunk.count:
            return None
        return self.trace.rows(chunk.start + skip, self.first[which] + skip, chunk.count - skip)


class StepRunner(Protocol):
    """What continuous batching needs of the part that computes steps. The meaning of all is that of `Runner`."""

    problem: str | None
    meanwhile: Callable[[], None] | None

    @property
    def drafts(self) -> bool: ...

    @property
    def repeats(self) -> bool: ...

    def describe(self) -> str: ...

    def expert_uses(self) -> dict[int, list[int]]: ...

    def notice(self, *, thorough: bool = True) -> bool: ...

    def weights_changed(self) -> bool: ...

    def run(self, chunks: list[Chunk]) -> StepOutput: ...

    def draft(self, chunks: list[Chunk], output: StepOutput) -> None: ...


class Runner:
    """Runs steps of one model on one store. predict: keep the window of the prediction block or draft head up to
    date, and make drafts. lookup: the most tokens of a looked-up draft; 0 turns look-up off. Where there are both, a
    request gets a looked-up draft if at least as many right tokens are expected of it as the head's drafts had.

    fused: True runs a step as one native call and raises ValueError with the reason if that is not possible; False runs
    one call for each operation; None fuses where possible. The bits are the same. places: where the threads of a fused
    step run; None = wherever the system puts them.

    The model may be changed between steps; `notice` finds the change. A model with code of others, or with settings
    that differ from its configuration, runs op by op until the change is undone; with code of others it gets no
    looked-up drafts.
    """

    def __init__(
        self,
        model: Transformer,
        store: CacheStore,
        *,
        predict: bool,
        lookup: int = 0,
        fused: bool | None = None,
        places: ThreadPlaces | None = None,
    ) -> None:
        self.model, self.store, self.predict, self._places = model, store, predict, places
        self._blocks = DraftBlocks(model, store) if predict and model.config.dspark else None
        self.pace: Pace = DraftPace()
        self.clock: Callable[[], float] = time.perf_counter  # seconds by which drafts are judged
        self.lookup = LookupDrafts(lookup) if lookup else None
        self._head = HeadRecord()
        self.experts = ExpertUse(model)
        self._fused: FusedStep | None = None
        self._may_fuse = fused is not False
        self._watch, self._weights = Watch(), WeightWatch(model)
        self._seen: tuple[object, ...] = ()
        self._alien: str | None = None
        self._reason: str | None = None
        self.problem: str | None = None  # the reason why no step can run
        # called once in a step, when the other threads of Python can run beside it
        self.meanwhile: Callable[[], None] | None = None
        self.notice()
        if fused and self._fused is None:
            raise ValueError(f"steps cannot be fused: {self._reason}")

    @property
    def drafts(self) -> bool:
        """Whether drafts are made."""
        return self.predict or self.lookup is not None

    @property
    def fused(self) -> bool:
        """Whether a step is one native call."""
        return self._fused is not None

    def describe(self) -> str:
        """The step that runs, with the reason if it is not the fused one."""
        return "fused" if self.fused else f"op by op ({self._reason or 'fused is off'})"

    def expert_uses(self) -> dict[int, list[int]]:
        """How often each expert of each layer was chosen."""
        return self.experts.by_layer()

    @property
    def repeats(self) -> bool:
        """Whether results may be reused later. They may not while code of others runs, because it may compute something
        else in the next call, nor when changes of the weights cannot be noticed."""
        return self._alien is None and self._weights.counted

    def notice(self, *, thorough: bool = True) -> bool:
        """Whether the model has changed since the last call; if it has, this runner has adapted. Without `thorough`, a
        change around the modules' methods (`parameter.data = ...`, their dictionaries, functions of classes) is found
        some calls later."""
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
                self._fused = FusedStep(
                    self.model, self.store, predict=self.predict, counts=self.experts.counts, places=self._places
                )
            except UnfitError as reason:
                self._reason = str(reason)
        self._seen, self._weights = tables, WeightWatch(self.model)
        if self.problem or self._alien or (before != self.fused and not first):
            how = "fused" if self.fused else "op by op"
            log("model_runs", steps=how, reason=self._reason or "the model is as its configuration says")
        return True

    def weights_changed(self) -> bool:
        """Whether a weight was written since the last call."""
        return self._weights.changed()

    def _tables(self) -> tuple[object, ...]:
        rotary = self.model.rotary
        return getattr(rotary, "plain_P", None), getattr(rotary, "long_P", None)

    def run(self, chunks: list[Chunk]) -> StepOutput:
        """Run the model on the chunks and write their cache rows. The caller updates `cached` of their requests."""
        first, rows, logits_of, start = [], [], [], 0
        for chunk in chunks:
            first.append(start)
            logits_of.append(slice(len(rows), len(rows) + chunk.wanted))
            rows += range(start + chunk.count - chunk.wanted, start + chunk.count)
            start += chunk.count
        carry = [self._carry(chunk) for chunk in chunks]
        trace = StepTrace() if any(chunk.request.trace is not None for chunk in chunks) else None
        began = self.clock()
        x_TSD, logits_NV = self._forward(chunks, rows, trace)
        if self.drafts and all(chunk.wanted == chunk.count for chunk in chunks):
            seconds = self.clock() - began
            if self._blocks is not None:
                self.pace.stepped(start, seconds)
            if self.lookup is not None:
                self.lookup.times.add(start, seconds)
        if self.predict and self._blocks is None:
            self._remember(chunks, first, x_TSD)
        broken = _broken(chunks, first, x_TSD, logits_NV, logits_of)
        return StepOutput(x_TSD, first, carry, logits_NV, logits_of, trace, broken)

    def draft(self, chunks: list[Chunk], output: StepOutput) -> None:
        """Make drafts for the requests that decode next. It needs the token after the last cached one, so it runs after
        sampling."""
        # NOTE: none while code of others runs: it would see the rows of drafts, and may depend on their number
        if self.lookup is not None and self._alien is None:
            checked = [chunk.request for chunk in chunks if chunk.drafts]
            self.lookup.propose(_decoding(chunks), self._head.update(checked) if self.predict else 0.0)
        if self._blocks is not None:
            self._draft_block(self._blocks, chunks)
        elif self.predict:
            self._draft_one(chunks, output)

    def _draft_block(self, blocks: DraftBlocks, chunks: list[Chunk]) -> None:
        ready = [request for request in _decoding(chunks) if request.room and not request.drafts]
        if ready and self.pace.wanted():
            began = self.clock()
            blocks.propose(ready, self.pace, self._fused)
            self.pace.drafted(self.clock() - began)
            self._head.drafted(ready)

    def _draft_one(self, chunks: list[Chunk], output: StepOutput) -> None:
        """Update the window of the prediction block to the cached tokens of each request, and let it draft a token."""
        live = [i for i, chunk in enumerate(chunks) if chunk.request.place is not None]
        window = self.store.config.sliding_window
        rows, tokens, starts, places = [], [], [], []
        for i in live:
            request, old = chunks[i].request, chunks[i].request.cached
            start = max(request.predicted, old - window)
            if start > request.predicted:
                request.predicted_from = start
            for position in range(start, old):
                carried = (
                    output.carry[i]
                    if position < chunks[i].start
                    else output.x_TSD[output.first[i] + position - chunks[i].start]
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
        requests = [chunks[i].request for i in live]
        ready = [n for n, r in enumerate(requests) if r.decodes and not r.drafts]
        logits_NV = self._predict(torch.stack(rows), tokens, starts, places, ready)
        for n, token in zip(ready, logits_NV.argmax(dim=1).tolist(), strict=True):
            requests[n].drafts = [token]
        self._head.drafted([requests[n] for n in ready])

    def _forward(self, chunks: list[Chunk], rows: list[int], trace: StepTrace | None) -> tuple[Tensor, Tensor]:
        """The streams of all tokens of the chunks, and the logits of `rows`. With a trace the model runs op by op."""
        places = [chunk.request.running_place for chunk in chunks]
        cached = [chunk.start for chunk in chunks]
        if self._fused is not None and trace is None:
            return self._fused.run([chunk.tokens for chunk in chunks], cached, places, rows, self.meanwhile)
        if self.meanwhile is not None:
            self.meanwhile()
        tokens = torch.tensor([token for chunk in chunks for token in chunk.tokens], device=self.model.device)
        sequences = self.model.pack([chunk.count for chunk in chunks], cached)
        regime = PLAIN if trace is None else trace.regime
        cache = StepCache(self.store, sequences, places)
        taps: list[Tensor] | None = None if self._blocks is None else []
        x_TSD = self.model.hidden(tokens, sequences, cache, self.experts.watching(trace), regime, taps)
        if self._blocks is not None and taps is not None:
            self._blocks.remember(taps, sequences, cache)
        return x_TSD, self._logits(self.model.logits, x_TSD, rows)

    def _logits(self, head: Callable[[Tensor], Tensor], x_TSD: Tensor, rows: list[int]) -> Tensor:
        """The logits of some rows in the memory of the host, where tokens are sampled: seeds, grammars and penalties
        then give the same tokens whatever device the model is on."""
        return head(x_TSD[torch.tensor(rows, dtype=torch.int64, device=x_TSD.device)]).cpu()

    def _predict(
        self, x_TSD: Tensor, tokens: list[list[int]], starts: list[int], places: list[Place], ready: list[int]
    ) -> Tensor:
        """Logits of the prediction block after the last token of each sequence in `ready`."""
        ends = list(accumulate(map(len, tokens)))
        last = [ends[n] - 1 for n in ready]
        if self._fused is not None:
            return self._fused.predict(x_TSD, tokens, starts, places, last)
        sequences = Sequences.pack([len(part) for part in tokens], (), starts, x_TSD.device)
        cache = StepCache(self.store, sequences, places)
        flat = torch.tensor([token for part in tokens for token in part], device=x_TSD.device)
        y_TSD = self.model.mtp_hidden(x_TSD, flat, sequences, cache)
        return self._logits(self.model.mtp_logits, y_TSD, last)

    def _carry(self, chunk: Chunk) -> Tensor | None:
        request = chunk.request
        if not self.predict or self._blocks is not None or request.predicted >= request.cached:
            return None
        row = (request.cached - 1) % self.store.spec.stream_rows
        return self.store.streams_SRHD[request.running_place.slot, row].to(self.model.numerics.activations, copy=True)

    def _remember(self, chunks: list[Chunk], first: list[int], x_TSD: Tensor) -> None:
        """Store the streams of the last tokens, because a prefix hit starts the prediction block one position back."""
        rows = self.store.spec.stream_rows
        for chunk, start in zip(chunks, first, strict=True):
            slot = chunk.request.running_place.slot
            for position in range(max(chunk.start, chunk.end - rows), chunk.end):
                row = start + position - chunk.start
                self.store.streams_SRHD[slot, position % rows].copy_(x_TSD[row])


def _decoding(chunks: list[Chunk]) -> list[Request]:
    """The requests that drafts may follow."""
    return [chunk.request for chunk in chunks if chunk.request.place is not None and chunk.request.decodes]


def _broken(
    chunks: list[Chunk], first: list[int], x_TSD: Tensor, logits_NV: Tensor, logits_of: list[slice]
) -> list[int | None]:
    """For each chunk, the first position with streams or logits that are not finite. If all are, this costs two
    sums."""
    if finite(x_TSD) and finite(logits_NV):
        return [None] * len(chunks)
    fine_T, fine_N = x_TSD.isfinite().flatten(1).all(1).tolist(), logits_NV.isfinite().all(1).tolist()
    broken: list[int | None] = []
    for chunk, start, rows in zip(chunks, first, logits_of, strict=True):
        of_logits = [True] * (chunk.count - chunk.wanted) + fine_N[rows]
        fine = [a and b for a, b in zip(fine_T[start : start + chunk.count], of_logits, strict=True)]
        broken.append(chunk.start + fine.index(False) if False in fine else None)
    return broken
