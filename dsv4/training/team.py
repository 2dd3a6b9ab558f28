"""The interface between a training step and its processes: one, or several that share the sequences of each step."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dsv4.config import ModelConfig
from dsv4.model.layers import Numerics
from dsv4.model.transformer import Transformer
from dsv4.training.batch import Batch, Totals
from dsv4.training.clipping import clip_gradients
from dsv4.training.loss import Losses
from dsv4.training.muon import PRODUCTS
from dsv4.training.param_groups import Named, Optimizers, make_optimizers
from dsv4.training.qat import FakeQuantised
from dsv4.training.settings import OptimizerSettings
from dsv4.training.states import find_state, latest_of_ranks, load_state, write_state

Fill = Callable[[Transformer], object]  # sets a whole model's weights in place, on the host


class Team(Protocol):
    """What one process knows of all processes. Every rank must make the same calls in the same order. `Alone` is for
    one process, `dsv4.distributed.ranks.Ranks` for several."""

    device: Any  # torch.device of this process's model and batches
    rank: int
    world: int
    samples: tuple[int, int]  # this rank's share of a step's sequences: its number, and the number of shares

    def build(self, config: ModelConfig, numerics: Numerics, fill: Fill) -> Transformer:
        """A new model whose weights `fill` sets, or this rank's part of it."""
        ...

    def optimizers(self, config: ModelConfig, named: Named, lr: float, settings: OptimizerSettings) -> Optimizers:
        """`make_optimizers` for the model of `build`."""
        ...

    def fake_quantised(self, model: Transformer, masters: Mapping[str, Tensor]) -> FakeQuantised:
        """`FakeQuantised` for the model of `build`."""
        ...

    def share(self, batches: list[Batch]) -> list[Batch]:
        """This rank's micro-batches of a step on its device, from those of its share of the sequences; all ranks get
        equally many."""
        ...

    def totals(self, batches: Sequence[Batch]) -> Totals:
        """The totals over the batches of all ranks."""
        ...

    def complete(self, losses: Losses, balance: float, totals: Totals) -> None:
        """Add to `losses` the balance loss of documents that lie on several ranks, which `compute_loss` cannot know."""
        ...

    def sum(self, tensor: Tensor) -> None:
        """Add the tensors of all ranks in place."""
        ...

    def sum_gradients(self, named: Named) -> None:
        """Sum the gradients of parameters of which several ranks hold a copy; a missing gradient counts as zero."""
        ...

    def clip(self, named: Named, largest: float) -> float:
        """`clip_gradients` over all ranks."""
        ...

    def save(self, folder: Path, header: dict[str, Any], capture: Callable[[], dict[str, Any]]) -> None:
        """Write the state as a whole; the previous state stays beside it. header: values that JSON can hold. capture:
        returns everything else, for a process that holds all of it."""
        ...

    def read(self, folder: Path) -> dict[str, Any] | None:
        """The header of the folder's state; None if the folder has no state."""
        ...

    def restore(self, folder: Path, restore: Callable[[dict[str, Any]], None]) -> None:
        """Load the state that `read` found."""
        ...

    def whole_weights(self, folder: Path, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """All weights by name, in fp32 where there are masters: `own` in one process, else the last checkpoint's."""
        ...

    def watch(self) -> AbstractContextManager[None]:
        """While entered, an error of the connection to another rank is reported as such."""
        ...

    def agree(self, wish: bool) -> bool:
        """The wish of the first rank, for decisions that depend on clocks."""
        ...

    def barrier(self) -> None: ...


class Alone:
    """The only process."""

    rank, world, samples = 0, 1, (0, 1)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._state: Path | None = None  # the file that `read` chose

    def build(self, config: ModelConfig, numerics: Numerics, fill: Fill) -> Transformer:
        model = Transformer(config, numerics)
        fill(model)  # on the host: the same seed gives the same weights on every device
        return model.to(self.device)

    def optimizers(self, config: ModelConfig, named: Named, lr: float, settings: OptimizerSettings) -> Optimizers:
        muon = {"momentum": settings.momentum, "dtype": PRODUCTS[settings.products]}
        return make_optimizers(config, named, lr, kind=settings.kind, decay=settings.decay, **muon)

    def fake_quantised(self, model: Transformer, masters: Mapping[str, Tensor]) -> FakeQuantised:
        return FakeQuantised(model, masters=masters)

    def share(self, batches: list[Batch]) -> list[Batch]:
        return [batch.to(self.device) for batch in batches]

    def totals(self, batches: Sequence[Batch]) -> Totals:
        return Totals.of(batches)

    def complete(self, losses: Losses, balance: float, totals: Totals) -> None:
        pass

    def sum(self, tensor: Tensor) -> None:
        pass

    def sum_gradients(self, named: Named) -> None:
        pass

    def clip(self, named: Named, largest: float) -> float:
        return clip_gradients([p for _, p in named], largest)

    def save(self, folder: Path, header: dict[str, Any], capture: Callable[[], dict[str, Any]]) -> None:
        write_state(folder, {**header, **capture()})

    def read(self, folder: Path) -> dict[str, Any] | None:
        if latest_of_ranks(folder) is not None:
            raise ValueError(f"{folder} holds a run of several ranks: start with torchrun, one process is enough")
        self._state = find_state(folder)
        return None if self._state is None else load_state(self._state, mapped=True)

    def restore(self, folder: Path, restore: Callable[[dict[str, Any]], None]) -> None:
        if self._state is None:
            raise RuntimeError("read must find a state before restore is called")
        restore(load_state(self._state))

    def whole_weights(self, folder: Path, own: dict[str, Tensor]) -> dict[str, Tensor]:
        return own

    def watch(self) -> AbstractContextManager[None]:
        return nullcontext()

    def agree(self, wish: bool) -> bool:
        return wish

    def barrier(self) -> None:
        pass
