"""What a training step asks of the processes it runs in: one alone, or several that share each step's sequences."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dsv4.config import ModelConfig
from dsv4.model.init import init_weights
from dsv4.model.layers import Numerics
from dsv4.model.transformer import Transformer
from dsv4.training.batch import Batch, Totals
from dsv4.training.clipping import clip_gradients
from dsv4.training.loss import Losses
from dsv4.training.param_groups import Named, Optimizers, make_optimizers
from dsv4.training.qat import FakeQuantised
from dsv4.training.settings import OptimizerSettings
from dsv4.training.states import find_state, latest_of_ranks, load_state, write_state


class Team(Protocol):
    """One process's view of all of them; every rank makes the same calls in the same order. `Alone` is one process,
    `dsv4.distributed.ranks.Ranks` several."""

    rank: int
    world: int
    samples: tuple[int, int]  # which share of a step's sequences, of how many

    def build(self, config: ModelConfig, numerics: Numerics, seed: int) -> Transformer:
        """A new model, or this rank's part of it."""
        ...

    def optimizers(self, config: ModelConfig, named: Named, lr: float, settings: OptimizerSettings) -> Optimizers:
        """`make_optimizers` over what `build` made."""
        ...

    def fake_quantised(self, model: Transformer, masters: Mapping[str, Tensor]) -> FakeQuantised:
        """`FakeQuantised` over what `build` made."""
        ...

    def share(self, batches: list[Batch]) -> list[Batch]:
        """This rank's micro-batches of a step, from those of its share of the sequences: the same number on all."""
        ...

    def totals(self, batches: Sequence[Batch]) -> Totals:
        """Those of all ranks' batches together."""
        ...

    def complete(self, losses: Losses, balance: float, totals: Totals) -> None:
        """Add what `compute_loss` could not know: the balance loss of documents that lie on several ranks."""
        ...

    def sum(self, tensor: Tensor) -> None:
        """Add the tensors of all ranks in place."""
        ...

    def sum_gradients(self, named: Named) -> None:
        """Add up the gradients of what several ranks hold a copy of; a missing gradient counts as zero."""
        ...

    def clip(self, named: Named, largest: float) -> float:
        """`clip_gradients` over all ranks."""
        ...

    def save(self, folder: Path, header: dict[str, Any], capture: Callable[[], dict[str, Any]]) -> None:
        """Write the state in one piece; the one before stays beside it. header: what JSON can hold;
        capture: everything else, where one process has all of it."""
        ...

    def read(self, folder: Path) -> dict[str, Any] | None:
        """The header of the folder's state; None where there is none."""
        ...

    def restore(self, folder: Path, restore: Callable[[dict[str, Any]], None]) -> None:
        """Put the state back."""
        ...

    def whole_weights(self, folder: Path, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """All weights by name, fp32 masters where there are any: `own` or what was saved last."""
        ...

    def watch(self) -> AbstractContextManager[None]:
        """While entered, errors of the connection to other ranks say so."""
        ...

    def agree(self, wish: bool) -> bool:
        """What the first rank wishes: clocks differ."""
        ...

    def barrier(self) -> None: ...


class Alone:
    """The only process."""

    rank, world, samples = 0, 1, (0, 1)

    def __init__(self) -> None:
        self._state: Path | None = None  # the file that `read` chose

    def build(self, config: ModelConfig, numerics: Numerics, seed: int) -> Transformer:
        return init_weights(Transformer(config, numerics), seed)

    def optimizers(self, config: ModelConfig, named: Named, lr: float, settings: OptimizerSettings) -> Optimizers:
        kind, momentum, decay = settings.kind, settings.momentum, settings.decay
        return make_optimizers(config, named, lr, kind=kind, momentum=momentum, decay=decay)

    def fake_quantised(self, model: Transformer, masters: Mapping[str, Tensor]) -> FakeQuantised:
        return FakeQuantised(model, masters=masters)

    def share(self, batches: list[Batch]) -> list[Batch]:
        return batches

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
