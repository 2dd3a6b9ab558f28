"""What every post-training run does with a loss: gradients of micro-batches, clipping, one update, the state on disk.

SFT, GRPO and distillation differ in their batches and losses alone; both are arguments.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dsv4.model.transformer import Transformer
from dsv4.training.balance import ExpertLoads, add_load, move_biases
from dsv4.training.batch import Batch, Totals
from dsv4.training.mixed import Masters
from dsv4.training.param_groups import Named, Optimizers
from dsv4.training.settings import OptimizerSettings
from dsv4.training.states import capture_state, restore_state
from dsv4.training.team import Alone, Team

B = TypeVar("B", bound=Batch)
# model, micro-batch, totals of the whole step -> the loss, divided by the totals, and sums for the log; a vector named
# LOAD + layer is how many tokens each expert of the layer got
LossOf = Callable[[Transformer, B, Totals], tuple[Tensor, Mapping[str, Tensor | float]]]
LOAD = "load."


class Learner:
    """A model that learns from whatever loss it is given.

        learner = Learner(model, optimizer=OptimizerSettings(kind="muon"))
        record = learner.step(batches, loss_of, lr=1e-5)

    model: as `team` has built it, weights loaded, on the device where it is to learn; batches are brought there.
    qat_from: the step from which the model computes with the numbers that the release layout will store (report
    5.2.1); None = never. balance: moves the routers' biases after each step by `optimizer.balance_speed`, from the
    loads that the loss reports; off, because the report names it for pre-training alone. optimizers: makes them where
    the model has parameters that no table knows (adapters).

    Micro-batches of one step share `totals`, so a token counts the same wherever it was packed. All ranks must give
    equally many. A step whose gradient is not finite changes nothing and says so (`skipped`).
    """

    def __init__(
        self,
        model: Transformer,
        *,
        optimizer: OptimizerSettings | None = None,
        team: Team | None = None,
        qat_from: int | None = None,
        balance: bool = False,
        optimizers: Callable[[Named], Optimizers] | None = None,
    ) -> None:
        self.model, self.team = model, team or Alone()
        self.settings = optimizer or OptimizerSettings()
        self.masters = Masters(model)
        named = [(name, p) for name, p in self.masters.named_parameters()]
        if optimizers is None:
            self.optimizers = self.team.optimizers(model.config, iter(named), 0.0, self.settings)
        else:
            self.optimizers = optimizers((name, p) for name, p in named if p.requires_grad)
        self._qat_from, self._balance = qat_from, balance
        self._fake = None if qat_from is None else self.team.fake_quantised(model, dict(named))
        self.updates = 0  # taken so far; the next step's number

    @property
    def quantised(self) -> bool:
        """Whether the next step computes with the release's numbers."""
        return self._qat_from is not None and self.updates >= self._qat_from

    def step(self, batches: Sequence[B], loss_of: LossOf[B], *, lr: float) -> dict[str, float]:
        """One update from micro-batches. Returns what a log needs: step, lr, loss, grad_norm, tokens, learned (weights
        of the targets), seconds, tokens_per_second, skipped (1 where nothing was learned), and the sums of `loss_of`,
        over all micro-batches and ranks.

        Raises ValueError for no batches or a learning rate below 0.
        """
        if not batches:
            raise ValueError("a step needs at least one micro-batch")
        if not lr >= 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        began = time.perf_counter()
        totals = self.team.totals(batches)
        sums, load = self._of_all_ranks(*self._accumulate(batches, loss_of, totals))
        norm = self.team.clip(self.masters.named_parameters(), self.settings.clip or float("inf"))
        skipped = not (math.isfinite(norm) and math.isfinite(sums["loss"]))
        if not skipped:
            self.optimizers.set_lr(lr)
            self.optimizers.step()
            self.masters.publish()
            if self._balance:
                move_biases(self.model, load, self.settings.balance_speed)
        self.optimizers.zero_grad()
        self.model.zero_grad()
        record = {"step": float(self.updates), "lr": lr, "grad_norm": norm, "skipped": float(skipped), **sums}
        self.updates += 1
        seconds = time.perf_counter() - began
        record |= {"tokens": totals.tokens, "learned": totals.next, "seconds": seconds}
        return record | {"tokens_per_second": totals.tokens / seconds}

    def weights(self, folder: Path) -> dict[str, Tensor]:
        """All weights by name, as wide as they are kept: what an export and a `WeightSink` take. folder: of the last
        state, from which several ranks read what they do not hold."""
        return self.team.whole_weights(folder, {**self.model.state_dict(), **self.masters.state_dict()})

    def save(self, folder: Path, header: Mapping[str, Any]) -> None:
        """Write weights, optimisers and `header` (what JSON can hold) in one piece; the state before stays beside it.
        Raises OSError where the disk is full; then both stay as they were."""
        folder.mkdir(parents=True, exist_ok=True)
        self.team.save(folder, {**header, "step": self.updates}, self.capture)

    def load(
        self, folder: Path, check: Callable[[Mapping[str, Any]], None] = lambda header: None
    ) -> dict[str, Any] | None:
        """Go on from the newest whole state, bit for bit; its header, None where the folder has none. check: is given
        the header before anything is restored, and raises where the state is another run's. Raises ValueError where
        only damaged ones are left."""
        state = self.team.read(folder)
        if state is None:
            return None
        header = {name: value for name, value in state.items() if name not in ("model", "optimizers", "masters")}
        check(header)
        self.team.restore(folder, self.restore)
        self.updates = int(header["step"])
        return header

    def capture(self) -> dict[str, Any]:
        """A copy in memory of everything that a step changes."""
        state = capture_state(self.model, self.optimizers)
        wide = {name: value.clone() for name, value in self.masters.state_dict().items()}
        own = dict(self.model.named_parameters())
        if any(value.dtype != own[name].dtype for name, value in wide.items()):  # otherwise the model holds them
            state["masters"] = wide
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Put a copy of `capture` back."""
        restore_state(self.model, self.optimizers, state)
        if "masters" in state:
            self.masters.load_state_dict(state["masters"])

    def _accumulate(
        self, batches: Sequence[B], loss_of: LossOf[B], totals: Totals
    ) -> tuple[dict[str, float], ExpertLoads]:
        sums: dict[str, float] = {"loss": 0.0}
        load: ExpertLoads = {}
        fake = self._fake if self.quantised else None
        with fake or nullcontext():
            for batch in batches:
                loss, metrics = loss_of(self.model, batch.to(self.model.device), totals)
                if loss.requires_grad:  # nothing to learn from a micro-batch that only fills a rank's share
                    loss.backward()
                self.masters.collect()
                sums["loss"] += float(loss.detach())
                for name, value in metrics.items():
                    if isinstance(value, Tensor) and name.startswith(LOAD):
                        add_load(load, {int(name.removeprefix(LOAD)): value})
                    else:
                        sums[name] = sums.get(name, 0.0) + float(value.detach() if isinstance(value, Tensor) else value)
        self.team.sum_gradients(self.masters.named_parameters())
        return sums, load

    def _of_all_ranks(self, sums: dict[str, float], load: ExpertLoads) -> tuple[dict[str, float], ExpertLoads]:
        """Both added up over the ranks, by one message. Every rank's loss reports the same names."""
        layers, names = sorted(load), sorted(sums)
        own = torch.tensor([sums[name] for name in names], dtype=torch.float64)
        parts = [own, *(load[layer].to("cpu", torch.float64) for layer in layers)]
        every = torch.cat(parts)
        self.team.sum(every)
        found, *counts = every.split([len(part) for part in parts])
        return dict(zip(names, found.tolist(), strict=True)), {
            layer: count.to(load[layer]) for layer, count in zip(layers, counts, strict=True)
        }
