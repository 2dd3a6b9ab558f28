"""The training loop: batches, losses, updates, recovery from spikes, and states to resume from.

Legend: T tokens.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv4.model.device import choose_device
from dsv4.model.init import init_weights
from dsv4.model.layers import BF16, FP32
from dsv4.model.transformer import Transformer
from dsv4.training.anticipate import BatchQueue, RoutedBatch, routes_of
from dsv4.training.balance import ExpertLoads, add_load, load_shares, max_violation, move_biases
from dsv4.training.batch import Batch, Totals
from dsv4.training.connection_error import connection_error
from dsv4.training.data import BatchReader, Position
from dsv4.training.documents import Codec, Source
from dsv4.training.indexer_loss import Recall
from dsv4.training.loss import compute_loss
from dsv4.training.mixed import Masters
from dsv4.training.recipe import Recipe
from dsv4.training.recovery import Recovery
from dsv4.training.resume import check_resume, fingerprints
from dsv4.training.schedule import Phase, StepSettings
from dsv4.training.settings import LossWeights
from dsv4.training.spikes import SpikeDetector
from dsv4.training.states import capture_state, restore_state, save_if_there_is_room
from dsv4.training.step_record import StepRecord
from dsv4.training.team import Alone, Fill, Team
from dsv4.training.throughput import matmul_rate, training_flops


class Trainer:
    """Model, optimisers and data of a recipe in a folder; `run` yields a record per step. If the folder has a state,
    the run resumes from it, bit for bit as if it had not stopped.

    fill: sets the weights where the run does not start from new ones; model: where the model is a special one of one
    process (adapters, a draft head); base: a digest of what either started from.
    Raises ValueError when the folder's state belongs to another recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        codec: Codec,
        sources: list[Source],
        *,
        team: Team | None = None,
        fill: Fill | None = None,
        model: Transformer | None = None,
        base: str | None = None,
    ) -> None:
        self.recipe, self.folder, self.schedule = recipe, folder, recipe.schedule
        self.team = team or Alone(choose_device(recipe.run.device, "run.device"))
        config = recipe.config(codec.vocab_size).with_changes(bos_token_id=codec.bos_id, eos_token_id=codec.eos_id)
        numerics = BF16 if recipe.run.numerics == "bf16" else FP32
        if model is None:
            self.model = self.team.build(config, numerics, fill or partial(init_weights, seed=recipe.seed))
        else:
            self.model = model.to(self.team.device)
        whole = recipe.lora is None and recipe.draft is None
        self.masters = Masters(self.model)
        named = ((name, p) for name, p in self.masters.named_parameters() if whole or p.requires_grad)
        self.optimizers = self.team.optimizers(config, named, recipe.lr.peak, recipe.optimizer)
        self._fake = nullcontext()
        if recipe.qat_from is not None:
            self._fake = self.team.fake_quantised(self.model, dict(self.masters.named_parameters()))
        detector = SpikeDetector()
        self.recovery = Recovery(detector, self._capture, self._restore, recipe.recovery)
        self.step, self.seconds = 0, 0.0
        self._holds: tuple[int, bool] | None = None  # stage and number formats of the last step
        self._yarn: bool | None = None  # what the model's rotary tables were made for
        self._data = fingerprints(sources, codec, base)
        rank, world = self.team.samples
        self._reader_from = partial(
            BatchReader, sources, recipe.data, self.schedule, codec, seed=recipe.seed, rank=rank, world=world
        )
        self.reader = self._reader_from(start=self._load())
        self._queue = BatchQueue(self._fetch, self._route, recipe.run.anticipation_delay)
        self._rate = matmul_rate(self.team.device)
        self._saved = time.monotonic()

    @property
    def tokens(self) -> int:
        """Seen so far, by all ranks."""
        return self.reader.position(self.step).tokens

    @property
    def done(self) -> bool:
        return self.tokens >= self.schedule.tokens

    def run(self) -> Iterator[StepRecord]:
        """Train to the end of the schedule. Saves every `run.save_seconds` and at the end; closing the iterator does
        not save. On a full disk the run goes on and tries again later; at the end a full disk is an error.
        """
        while not self.done:
            with self.team.watch():
                record = self.advance()
            yield record
            with self.team.watch():
                if self.team.agree(time.monotonic() - self._saved >= self.recipe.run.save_seconds):
                    save_if_there_is_room(self.save)
        with self.team.watch():
            self.save()

    def advance(self) -> StepRecord:
        """One step, or one return to a snapshot after a spike."""
        began, tokens, step = time.perf_counter(), self.tokens, self.step
        settings = self.schedule.at(tokens)
        self._apply(settings)
        anticipating = self.recovery.anticipating(step)
        if self.recipe.run.recovery:
            self.recovery.before_step(step)
        batches = self._queue.take(step, anticipating)
        totals = self.team.totals([part.batch for part in batches])
        measured = step % self.recipe.run.recall_every == 0
        parts, load = self._accumulate(batches, settings, totals, self.recipe.run.recall_queries if measured else 0)
        norm = self.team.clip(self.masters.named_parameters(), self.recipe.optimizer.clip or float("inf"))
        back = self.recovery.judge(step, loss=parts["next"], grad_norm=norm) if self.recipe.run.recovery else None
        if back is None:
            self._update(load, settings)
            self.step += 1
        else:
            self.step = back
            self._queue.clear()
        self.optimizers.zero_grad()
        seconds = time.perf_counter() - began
        self.seconds += seconds
        if back is None:
            self.reader.forget(step - 4 * self.recipe.recovery.snapshot_every * self.recipe.recovery.snapshots)
        rate = totals.tokens / seconds
        dense = settings.stage.phase is not Phase.SPARSE
        flops = self._flops([n for b in batches for n in b.batch.lengths], dense=dense)
        record = StepRecord(
            step=step,
            tokens=tokens,
            phase=settings.stage.phase.value,
            lr=settings.lr,
            losses=parts,
            grad_norm=norm,
            max_violation=max((max_violation(one) for one in load.values()), default=0.0),
            seconds=seconds,
            tokens_per_second=rate,
            mfu=flops * rate / self._rate / self.team.world,
            qat=settings.qat,
            anticipating=anticipating,
        )
        if measured:
            record.extra["connection_error"] = connection_error(self.model)
            record.expert_load = load_shares(load)
        if back is not None:
            record.spike, record.back_to = str(self.recovery.spikes[-1]), back
        return record

    def stand_at(self, tokens: int, *, anticipating: bool = False) -> None:
        """Continue as a run that has seen `tokens` tokens, with the present weights and the first documents: to try
        stages in a run that is not kept. anticipating: use Anticipatory Routing, as after a spike."""
        zeros = (0,) * len(self.recipe.data.sources)
        position = Position(tokens, zeros, zeros, self.schedule.at(tokens).stage.length)
        self.reader = self._reader_from(start=(self.step, position))
        self._queue.clear()
        self.recovery.route_ahead(self.step + 1_000_000 if anticipating else self.step)

    def save(self) -> None:
        """Write the state; the old one stays until the new one is complete."""
        self._saved = time.monotonic()
        header = {
            "recipe": self.recipe.to_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "position": self.reader.position(self.step).to_dict(),
            "recovery": self.recovery.state_dict(),
            "holds": self._holds,
            "data": self._data,
        }
        self.team.save(self.folder, header, self._capture)

    def weights(self) -> dict[str, Tensor]:
        """All of the model's weights by name, in fp32 where the run keeps masters."""
        own = {**self.model.state_dict(), **self.masters.state_dict()}
        return self.team.whole_weights(self.folder, own)

    def _load(self) -> tuple[int, Position] | None:
        state = self.team.read(self.folder)
        if state is None:
            return None
        check_resume(self.folder, state, self.recipe, self._data)
        self.step, self.seconds = state["step"], state["seconds"]
        self.team.restore(self.folder, self._restore)
        self.recovery.load_state_dict(state["recovery"])
        self._holds = state["holds"] and tuple(state["holds"])
        return self.step, Position.from_dict(state["position"])

    def _capture(self) -> dict[str, Any]:
        state = capture_state(self.model, self.optimizers)
        if self.recipe.run.numerics != "fp32" and self.recipe.lora is None:  # otherwise the model holds them
            state["masters"] = {name: value.clone() for name, value in self.masters.state_dict().items()}
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        restore_state(self.model, self.optimizers, state)
        if "masters" in state:
            self.masters.load_state_dict(state["masters"])

    def _apply(self, settings: StepSettings) -> None:
        self.optimizers.set_lr(settings.lr)
        if settings.stage.yarn != self._yarn:
            self.model.use_yarn(settings.stage.yarn)
            self._yarn = settings.stage.yarn
        holds = (settings.stage_index, settings.qat)
        if holds != self._holds:  # the loss changes here, so the detector starts again
            self.recovery.detector.reset()
            self._holds = holds

    def _flops(self, lengths: Sequence[int], *, dense: bool) -> float:
        """Operations of a token, for the MFU."""
        return training_flops(self.model.config, lengths, dense=dense)

    def _fetch(self, step: int) -> list[Batch]:
        return self.team.share(self.reader.fetch(step))

    def _route(self, batch: Any) -> dict[int, Tensor]:
        return routes_of(self.model, batch, self.schedule.at(self.tokens).stage.phase)

    def _accumulate(
        self, batches: list[RoutedBatch], settings: StepSettings, totals: Totals, queries: int
    ) -> tuple[dict[str, float], ExpertLoads]:
        """Gradients of all micro-batches; the parts of the loss, recall and the experts' load over all ranks."""
        fixed = self.recipe.loss
        weights = LossWeights(settings.mtp_weight, fixed.balance, fixed.indexer)
        sums: dict[str, float] = {}
        load: ExpertLoads = {}
        recalls: list[Recall] = []
        with self._fake if settings.qat else nullcontext():
            for part in batches:
                losses = compute_loss(
                    self.model,
                    part.batch,
                    phase=settings.stage.phase,
                    weights=weights,
                    totals=totals,
                    routes=part.routes,
                    recompute=self.recipe.run.recompute,
                    recall_queries=queries,
                )
                self.team.complete(losses, weights.balance, totals)
                losses.total.backward()
                self.masters.collect()
                add_load(load, losses.load)
                for name, value in losses.parts.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
                recalls += losses.recalls.values()
        self.team.sum_gradients(self.masters.named_parameters())
        return self._of_all_ranks(sums, Recall.mean(recalls), load)

    def _of_all_ranks(
        self, sums: dict[str, float], recall: Recall, load: ExpertLoads
    ) -> tuple[dict[str, float], ExpertLoads]:
        """Sums of losses and loads, and the recall over all ranks' queries, by one message."""
        own = [*sums.values(), recall.entries * recall.queries, recall.mass * recall.queries, recall.queries]
        layers = sorted(load)
        counts = torch.stack([load[layer] for layer in layers])
        every = torch.cat([torch.tensor(own, dtype=torch.float64), counts.flatten().to("cpu", torch.float64)])
        self.team.sum(every)
        *parts, entries, mass, queries = every[: len(own)].tolist()
        found = dict(zip(sums, parts, strict=True))
        if queries:
            found |= {"recall_mass": mass / queries, "recall_entries": entries / queries}
        counts.copy_(every[len(own) :].view_as(counts))
        return found, dict(zip(layers, counts, strict=True))

    def _update(self, load: ExpertLoads, settings: StepSettings) -> None:
        self.optimizers.step()
        self.masters.publish()
        if settings.stage.phase is not Phase.WARMUP:
            move_biases(self.model, load, self.recipe.optimizer.balance_speed)
