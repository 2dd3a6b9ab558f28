"""What a training step asks of the processes it runs in: one alone, or several that share each step's sequences."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsv4.config import ModelConfig
from dsv4.distributed import checkpoint, expert_parallel, fsdp, gradients
from dsv4.distributed.context_parallel import Layout, reach
from dsv4.distributed.failure import watched
from dsv4.distributed.mesh import Mesh
from dsv4.distributed.optimizers import LocalOptimizer, OwnedMatrices
from dsv4.distributed.transformer import RankTransformer
from dsv4.model.init import init_weights
from dsv4.model.layers import Numerics
from dsv4.model.transformer import Transformer
from dsv4.training.batch import Batch, Totals
from dsv4.training.loss import Losses
from dsv4.training.muon import Muon
from dsv4.training.param_groups import ADAMW_BETAS, ADAMW_EPS, Groups, Optimizers, make_optimizers
from dsv4.training.spikes import clip_gradients
from dsv4.training.states import STATE_FILE, find_state, load_state, write_state

Named = Iterable[tuple[str, nn.Parameter]]
Kind = Literal["muon", "adamw"]


class Team(Protocol):
    """One process's view of all of them. Every rank makes the same calls in the same order."""

    rank: int
    world: int
    samples: tuple[int, int]  # which share of a step's sequences, of how many

    def build(self, config: ModelConfig, numerics: Numerics, seed: int) -> Transformer:
        """A new model, or this rank's part of it."""
        ...

    def optimizers(
        self, config: ModelConfig, named: Named, lr: float, kind: Kind, momentum: float, decay: float
    ) -> Optimizers:
        """`make_optimizers` over what `build` made."""
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

    def optimizers(
        self, config: ModelConfig, named: Named, lr: float, kind: Kind, momentum: float, decay: float
    ) -> Optimizers:
        return make_optimizers(config, named, lr, kind=kind, momentum=momentum, decay=decay)

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
        if checkpoint.latest(folder) is not None:
            raise ValueError(f"{folder} holds a run of several ranks: start with torchrun, one process is enough")
        self._state = find_state(folder)
        return None if self._state is None else load_state(self._state, mapped=True)

    def restore(self, folder: Path, restore: Callable[[dict[str, Any]], None]) -> None:
        assert self._state is not None
        restore(load_state(self._state))

    def whole_weights(self, folder: Path, own: dict[str, Tensor]) -> dict[str, Tensor]:
        return own

    def watch(self) -> AbstractContextManager[None]:
        return nullcontext()

    def agree(self, wish: bool) -> bool:
        return wish

    def barrier(self) -> None:
        pass


class Ranks:
    """Several processes that train one model, laid out as a mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.rank, self.world = mesh.rank, mesh.world
        self.samples = (mesh.sample_rank, mesh.sample_world)
        self._least = 1  # tokens of a micro-batch
        self._model: RankTransformer | None = None
        self._masters: dict[str, nn.Parameter] = {}
        self._optimizers: tuple[OwnedMatrices | None, LocalOptimizer] | None = None

    def build(self, config: ModelConfig, numerics: Numerics, seed: int) -> RankTransformer:
        """The whole model is made on every rank and cut then, so it is the same for every mesh."""
        model = RankTransformer(config, self.mesh, numerics)
        ranks = self.mesh.scale.context
        self._least = ranks * reach(config) if ranks > 1 else 1
        init_weights(model, seed)
        model.to(self.mesh.device)
        expert_parallel.split(model, self.mesh)
        fsdp.shard(model, self.mesh)
        self._model = model
        return model

    def optimizers(
        self, config: ModelConfig, named: Named, lr: float, kind: Kind, momentum: float, decay: float
    ) -> Optimizers:
        """AdamW on what each rank holds, Muon on whole matrices with one owner each."""
        tensors = dict(named)
        found = Groups.of(config, tensors.items(), kind)
        adam = [{"named": members, "weight_decay": decay * on} for on, members in found.vectors.items()]
        adamw = LocalOptimizer(
            adam, lambda groups: torch.optim.AdamW(groups, lr=lr, betas=ADAMW_BETAS, eps=ADAMW_EPS, fused=True)
        )
        muon = None
        if found.matrices:
            groups = [{"named": members, "rows": rows} for rows, members in found.matrices.items()]
            muon = OwnedMatrices(
                groups, lambda made: Muon(made, lr=lr, momentum=momentum, weight_decay=0.0), self.mesh, lr, decay
            )
        self._masters, self._optimizers = tensors, (muon, adamw)
        return Optimizers(muon, adamw)  # pyrefly: ignore

    def share(self, batches: list[Batch]) -> list[Batch]:
        """Forward passes exchange tensors, so all ranks make equally many; every rank has as many sequences, so a
        rank with fewer micro-batches can cut some between documents. Then context ranks cut each."""
        batches = join_batches(batches, self._least)
        count = torch.tensor(len(batches), device=self.mesh.device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
        batches = cut_batches(batches, int(count), self._least)
        moved = [Batch(b.tokens_T.to(self.mesh.device), b.lengths, b.learn_T.to(self.mesh.device)) for b in batches]
        if self.mesh.scale.context == 1:
            return moved
        place, ranks = self.mesh.place("context"), self.mesh.scale.context
        return [Stretch.of(b, Layout.of(b.lengths, place, ranks, self._least // ranks)) for b in moved]

    def totals(self, batches: Sequence[Batch]) -> Totals:
        own = Totals.of(batches)
        tokens = sum(
            b.layout.span[1] - b.layout.span[0] if isinstance(b, Stretch) else len(b.tokens_T) for b in batches
        )
        sums = torch.tensor([own.next, own.ahead, tokens], dtype=torch.float64)
        self.sum(sums)
        return Totals(*sums.tolist())

    def complete(self, losses: Losses, balance: float, totals: Totals) -> None:
        lacking = self._parts()[0].take_balance()
        if lacking is not None and "balance" in losses.parts:
            lacking = lacking / totals.tokens
            losses.total = losses.total + balance * lacking
            losses.parts["balance"] = losses.parts["balance"] + lacking.detach()

    def sum(self, tensor: Tensor) -> None:
        moved = tensor.to(self.mesh.device)
        dist.all_reduce(moved)
        tensor.copy_(moved)

    def sum_gradients(self, named: Named) -> None:
        gradients.sum_gradients(named, self.mesh)

    def clip(self, named: Named, largest: float) -> float:
        return gradients.clip(named, largest, self.mesh)

    def save(self, folder: Path, header: dict[str, Any], capture: Callable[[], dict[str, Any]]) -> None:
        muon, adamw = self._parts()[1]
        tensors = self._weights()
        for optimizer in (adamw, muon):
            if optimizer is not None:
                tensors.update(optimizer.tensors())
        checkpoint.save(folder, header["step"], header, tensors)

    def read(self, folder: Path) -> dict[str, Any] | None:
        if (folder / STATE_FILE).exists():
            raise ValueError(f"{folder} holds a run of one process without torchrun: go on without it")
        path = checkpoint.latest(folder)
        return None if path is None else checkpoint.header(path)

    def restore(self, folder: Path, restore: Callable[[dict[str, Any]], None]) -> None:
        path = checkpoint.latest(folder)
        assert path is not None
        stored, tensors = checkpoint.names(path), self._weights()
        for optimizer in self._parts()[1]:
            if optimizer is not None:
                # a parameter that has not moved yet has no state, and whether it has is the same for all ranks
                tensors.update(optimizer.empty_tensors(stored))
        checkpoint.load(path, tensors)

    def _parts(self) -> tuple[RankTransformer, tuple[OwnedMatrices | None, LocalOptimizer]]:
        if self._model is None or self._optimizers is None:
            raise RuntimeError("the team must have built the model and its optimisers first")
        return self._model, self._optimizers

    def _weights(self) -> dict[str, Tensor]:
        """The model as it computes, and fp32 masters where they are others."""
        model = self._parts()[0]
        state = model.state_dict()
        masters = {name: p.detach() for name, p in self._masters.items() if p.dtype != state[name].dtype}
        return {f"model.{k}": v for k, v in state.items()} | {f"masters.{k}": v for k, v in masters.items()}

    def whole_weights(self, folder: Path, own: dict[str, Tensor]) -> dict[str, Tensor]:
        path = checkpoint.latest(folder)
        if path is None:
            raise ValueError(f"{folder} holds no checkpoint")
        return {**checkpoint.read(path, "model."), **checkpoint.read(path, "masters.")}

    def watch(self) -> AbstractContextManager[None]:
        return watched(self.rank, self.world, self.mesh.scale.timeout)

    def agree(self, wish: bool) -> bool:
        told = torch.tensor(int(wish), device=self.mesh.device)
        dist.broadcast(told, 0)
        return bool(told)

    def barrier(self) -> None:
        dist.barrier()


@dataclass(frozen=True, slots=True)
class Stretch(Batch):
    """This rank's tokens of a batch whose documents several ranks share, and the two tokens that follow: targets of the
    last rows, which make no row themselves. lengths: of all documents, as the model packs them."""

    layout: Layout
    all: Batch

    AHEAD: ClassVar[int] = 2

    @classmethod
    def of(cls, batch: Batch, layout: Layout) -> "Stretch":
        first, last = layout.span[0], layout.span[1] + cls.AHEAD
        # after the last token comes the first, as where one process turns the batch around
        tokens_T, learn_T = (torch.cat([t, t[: cls.AHEAD]])[first:last] for t in (batch.tokens_T, batch.learn_T))
        return cls(tokens_T, batch.lengths, learn_T, layout, batch)

    def __post_init__(self) -> None:
        pass  # the whole batch was checked

    def weights(self, ahead: int) -> Tensor:
        """See Batch.weights; 0 for the tokens that make no row."""
        first, last = self.layout.span
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
    """The same documents in `count` batches of at least `least` tokens: the largest that can be is cut between two
    documents until there are enough. Raises ValueError where that is impossible."""
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
