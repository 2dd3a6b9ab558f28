"""`Team` for several processes that share the sequences of each training step: a mesh of ranks."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsv4.config import ModelConfig
from dsv4.distributed import checkpoint, expert_parallel, fsdp, gradients
from dsv4.distributed.context_parallel import ContextSplit, reach
from dsv4.distributed.failure import watched
from dsv4.distributed.mesh import Mesh
from dsv4.distributed.micro_batches import SplitBatch, cut_batches, join_batches
from dsv4.distributed.optimizers import LocalOptimizer, OwnedMatrices
from dsv4.distributed.qat import ShardsFakeQuantised
from dsv4.distributed.transformer import RankTransformer
from dsv4.model.layers import Numerics
from dsv4.model.transformer import Transformer
from dsv4.training.batch import Batch, Totals
from dsv4.training.loss import Losses
from dsv4.training.muon import PRODUCTS, Muon
from dsv4.training.param_groups import Groups, Named, Optimizers, make_adamw
from dsv4.training.settings import OptimizerSettings
from dsv4.training.states import STATE_FILE, latest_of_ranks
from dsv4.training.team import Fill


class Ranks:
    """Several processes that train one model, laid out as a mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.device = mesh, mesh.device
        self.rank, self.world = mesh.rank, mesh.world
        self.samples = (mesh.sample_rank, mesh.sample_world)
        self._least = 1  # tokens of a micro-batch
        self._model: RankTransformer | None = None
        self._masters: dict[str, nn.Parameter] = {}
        self._optimizers: tuple[OwnedMatrices | None, LocalOptimizer] | None = None

    def build(self, config: ModelConfig, numerics: Numerics, fill: Fill) -> RankTransformer:
        """Make the whole model on every rank, then cut it: the weights are the same for every mesh."""
        model = RankTransformer(config, self.mesh, numerics)
        ranks = self.mesh.scale.context
        self._least = ranks * reach(config) if ranks > 1 else 1
        fill(model)
        model.to(self.mesh.device)
        expert_parallel.split(model, self.mesh)
        fsdp.shard(model, self.mesh)
        self._model = model
        return model

    def optimizers(self, config: ModelConfig, named: Named, lr: float, settings: OptimizerSettings) -> Optimizers:
        """AdamW for the part that each rank holds, Muon for whole matrices with one owner each."""
        tensors = dict(named)
        found = Groups.of(config, tensors.items(), settings.kind)
        adam = [{"named": members, "weight_decay": settings.decay * on} for on, members in found.vectors.items()]
        adamw = LocalOptimizer(adam, lambda groups: make_adamw(groups, lr))
        muon = None
        if found.matrices:
            groups = [{"named": members, "rows": rows} for rows, members in found.matrices.items()]

            def make(made: list[dict[str, Any]]) -> Muon:
                dtype = PRODUCTS[settings.products]
                return Muon(made, lr=lr, momentum=settings.momentum, weight_decay=0.0, dtype=dtype)

            muon = OwnedMatrices(groups, make, self.mesh, lr, settings.decay)
        self._masters, self._optimizers = tensors, (muon, adamw)
        return Optimizers(muon, adamw)

    def fake_quantised(self, model: Transformer, masters: Mapping[str, Tensor]) -> ShardsFakeQuantised:
        return ShardsFakeQuantised(model, masters=masters)

    def share(self, batches: list[Batch]) -> list[Batch]:
        """Forward passes exchange tensors, so all ranks must make equally many. All ranks have equally many sequences:
        a rank with fewer micro-batches cuts some of them between documents. Then the context ranks cut each batch."""
        batches = join_batches(batches, self._least)
        count = torch.tensor(len(batches), device=self.mesh.device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
        batches = cut_batches(batches, int(count), self._least)
        moved = [Batch(b.tokens_T.to(self.mesh.device), b.lengths, b.learn_T.to(self.mesh.device)) for b in batches]
        if self.mesh.scale.context == 1:
            return moved
        place, ranks = self.mesh.place("context"), self.mesh.scale.context
        return [SplitBatch.of(b, ContextSplit.of(b.lengths, place, ranks, self._least // ranks)) for b in moved]

    def totals(self, batches: Sequence[Batch]) -> Totals:
        own = Totals.of(batches)
        tokens = sum(
            b.split.span[1] - b.split.span[0] if isinstance(b, SplitBatch) else len(b.tokens_T) for b in batches
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
        path = latest_of_ranks(folder)
        return None if path is None else checkpoint.header(path)

    def restore(self, folder: Path, restore: Callable[[dict[str, Any]], None]) -> None:
        path = _latest(folder)
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
        """The weights that compute, and the fp32 masters of those that have another type."""
        model = self._parts()[0]
        state = model.state_dict()
        masters = {name: p.detach() for name, p in self._masters.items() if p.dtype != state[name].dtype}
        return {f"model.{k}": v for k, v in state.items()} | {f"masters.{k}": v for k, v in masters.items()}

    def whole_weights(self, folder: Path, own: dict[str, Tensor]) -> dict[str, Tensor]:
        path = _latest(folder)
        return {**checkpoint.read(path, "model."), **checkpoint.read(path, "masters.")}

    def watch(self) -> AbstractContextManager[None]:
        return watched(self.rank, self.world, self.mesh.scale.timeout)

    def agree(self, wish: bool) -> bool:
        told = torch.tensor(int(wish), device=self.mesh.device)
        dist.broadcast(told, 0)
        return bool(told)

    def barrier(self) -> None:
        dist.barrier()


def _latest(folder: Path) -> Path:
    """The newest whole checkpoint. Raises ValueError where there is none."""
    path = latest_of_ranks(folder)
    if path is None:
        raise ValueError(f"{folder} holds no checkpoint")
    return path
