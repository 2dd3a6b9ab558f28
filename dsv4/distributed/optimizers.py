"""Optimisers over parameters of which a rank holds a shard or one of several copies.

AdamW works element by element, so it runs on the part that a rank holds. Muon needs whole matrices, so each matrix has
one owner: the owner gathers the gradient once, keeps the momentum, computes the update and sends each rank its part
(report 3.4: whole matrices, assigned by size).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dsv4.distributed.collectives import exchange, gather_rows
from dsv4.distributed.fsdp import shard_rows
from dsv4.distributed.gradients import copies, local
from dsv4.distributed.mesh import SHARD_COPIES, Mesh

MESSAGE = 1 << 28  # numbers sent at once: 1 GiB in fp32, over all owners
Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def deal(sizes: Sequence[int], ranks: int) -> list[int]:
    """An owner for each matrix: the largest first, each to the first rank with the smallest sum so far."""
    load, owners = [0] * ranks, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        owners[i] = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[owners[i]] += sizes[i]
    return owners


class LocalOptimizer:
    """An element-wise optimiser on this rank's part of each parameter.

    groups: dicts with "named" [(name, parameter)] and settings; `make` builds the optimiser from torch's groups.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], make: Make) -> None:
        self._named: dict[str, nn.Parameter] = {}
        self._views: dict[str, nn.Parameter] = {}
        made = []
        for group in groups:
            settings = {key: value for key, value in group.items() if key != "named"}
            for name, p in group["named"]:
                self._named[name], self._views[name] = p, nn.Parameter(local(p.detach()))
            made.append({"params": [self._views[name] for name, _ in group["named"]], **settings})
        self.inner = make(made)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @torch.no_grad()
    def step(self) -> None:
        for name, p in self._named.items():
            view = self._views[name]
            view.data = local(p.detach())
            view.grad = None if p.grad is None else local(p.grad)
        self.inner.step()
        for view in self._views.values():
            view.grad = None

    def zero_grad(self) -> None:
        for p in self._named.values():
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """By parameter name; only this rank's part of each."""
        return {name: dict(self.inner.state[view]) for name, view in self._views.items() if self.inner.state[view]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.state.clear()
        for name, values in state.items():
            self.inner.state[self._views[name]] = {key: value.clone() for key, value in values.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The state for a checkpoint, cut as the parameters are: "adamw.NAME.KEY"."""
        found = {}
        for name, view in self._views.items():
            for key, value in self.inner.state[view].items():
                found[f"adamw.{name}.{key}"] = _like(value, self._named[name]) if value.dim() else value
        return found

    def empty_tensors(self, stored: set[str]) -> dict[str, Tensor]:
        """State to be filled from a checkpoint that holds the names `stored`; it is in place already."""
        self.inner.state.clear()
        for name, view in self._views.items():
            if f"adamw.{name}.step" in stored:
                state = {key: torch.zeros_like(view, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
                self.inner.state[view] = {"step": torch.zeros((), device=view.device), **state}
        return self.tensors()


@dataclass(frozen=True, slots=True)
class _Matrix:
    name: str
    p: nn.Parameter
    owner: int  # rank in the group that shares it
    scratch: nn.Parameter | None  # at the owner: the whole matrix, where its update is made


class OwnedMatrices:
    """An optimiser of whole matrices; state and update of each are made by one rank.

    groups: dicts with "named" [(name, parameter)] and settings for `make`, which builds the optimiser. It runs
    on matrices of zeros without decay, so its result is the update; decay is applied where the weights are.
    Parameters without a gradient are left alone; all ranks must agree on which.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], make: Make, mesh: Mesh, lr: float, decay: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": [], "lr": lr, "weight_decay": decay}]
        groups = list(groups)
        self._shared: dict[tuple[str, ...], Any] = {}
        self._matrices: dict[tuple[str, ...], list[_Matrix]] = {}
        scratches: dict[str, nn.Parameter] = {}
        by_axes: dict[tuple[str, ...], list[tuple[str, nn.Parameter]]] = {}
        for group in groups:
            for name, p in group["named"]:
                by_axes.setdefault(copies(name, p), []).append((name, p))
        for axes, named in by_axes.items():
            # a cut matrix is shared by those that hold its parts, a whole one by those that hold copies
            shared = mesh.group("fsdp") if axes == SHARD_COPIES else mesh.group(*axes)
            me, ranks = dist.get_rank(shared), dist.get_world_size(shared)
            owners = deal([p.numel() for _, p in named], ranks)
            self._shared[axes] = shared
            for (name, p), owner in zip(named, owners, strict=True):
                scratch = None
                if owner == me:
                    scratch = scratches[name] = nn.Parameter(local(p.detach()).new_zeros(p.shape))
                self._matrices.setdefault(axes, []).append(_Matrix(name, p, owner, scratch))
        self._scratches = scratches
        made = []
        for group in groups:
            own = [scratches[name] for name, _ in group["named"] if name in scratches]
            if own:
                made.append({**{k: v for k, v in group.items() if k != "named"}, "params": own, "weight_decay": 0.0})
        self.inner = make(made) if made else None

    @property
    def owned(self) -> set[str]:
        """Names of the matrices that this rank updates."""
        return set(self._scratches)

    @torch.no_grad()
    def step(self) -> None:
        lr, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        live = {axes: [m for m in found if m.p.grad is not None] for axes, found in self._matrices.items()}
        for axes, matrices in live.items():
            if axes == SHARD_COPIES:
                for some in _messages(matrices):
                    self._gather_gradients(some, self._shared[axes])
            else:
                for m in matrices:
                    if m.scratch is not None:
                        m.scratch.grad = m.p.grad
        if self.inner is not None:
            for group in self.inner.param_groups:
                group["lr"] = lr
            for scratch in self._scratches.values():
                scratch.zero_()
            self.inner.step()
        for axes, matrices in live.items():
            give = self._return_shards if axes == SHARD_COPIES else self._return_copies
            for some in _messages(matrices):
                for m, update in zip(some, give(some, self._shared[axes]), strict=True):
                    local(m.p).mul_(1 - lr * decay).add_(update)
        for scratch in self._scratches.values():
            scratch.grad = None

    def _gather_gradients(self, matrices: list[_Matrix], group: Any) -> None:
        ranks, me = dist.get_world_size(group), dist.get_rank(group)
        held = [[local(m.p.grad).reshape(-1) for m in matrices if m.owner == owner] for owner in range(ranks)]  # pyrefly: ignore
        mine = [m for m in matrices if m.owner == me]
        parts = [[shard_rows(m.p.shape[0], ranks)[rank] * m.p.shape[1] for m in mine] for rank in range(ranks)]
        send, receive = [sum(t.numel() for t in part) for part in held], [sum(part) for part in parts]
        flat = [t for part in held for t in part]
        got = exchange(torch.cat(flat) if flat else self._nothing(), send, receive, group)
        by_rank = [block.split(part) for block, part in zip(got.split(receive), parts, strict=True)]
        for i, m in enumerate(mine):
            assert m.scratch is not None
            m.scratch.grad = torch.cat([pieces[i] for pieces in by_rank]).view(m.p.shape)

    def _return_shards(self, matrices: list[_Matrix], group: Any) -> list[Tensor]:
        ranks = dist.get_world_size(group)
        mine = [m.scratch for m in matrices if m.scratch is not None]
        cut = [scratch.split(shard_rows(scratch.shape[0], ranks)) for scratch in mine]
        flat = [pieces[rank].reshape(-1) for rank in range(ranks) for pieces in cut]
        send = [sum(pieces[rank].numel() for pieces in cut) for rank in range(ranks)]
        size = {m.name: local(m.p).numel() for m in matrices}
        receive = [sum(size[m.name] for m in matrices if m.owner == owner) for owner in range(ranks)]
        got = exchange(torch.cat(flat) if flat else self._nothing(), send, receive, group)
        return _deal_back(matrices, got, [size[m.name] for m in matrices], ranks)

    def _return_copies(self, matrices: list[_Matrix], group: Any) -> list[Tensor]:
        ranks = dist.get_world_size(group)
        mine = [m.scratch.reshape(-1) for m in matrices if m.scratch is not None]
        sizes = [m.p.numel() for m in matrices]
        counts = [sum(n for n, m in zip(sizes, matrices, strict=True) if m.owner == owner) for owner in range(ranks)]
        got = gather_rows(torch.cat(mine) if mine else self._nothing(), counts, group)
        return _deal_back(matrices, got, sizes, ranks)

    def _nothing(self) -> Tensor:
        first = next(iter(self._matrices.values()))[0]
        return local(first.p.detach()).new_empty(0)

    def zero_grad(self) -> None:
        for found in self._matrices.values():
            for m in found:
                m.p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """By parameter name; whole matrices, and only those that this rank owns."""
        if self.inner is None:
            return {}
        return {name: dict(self.inner.state[s]) for name, s in self._scratches.items() if self.inner.state[s]}

    def tensors(self) -> dict[str, Tensor]:
        """The state for a checkpoint, whole matrices of this rank: "muon.NAME.KEY"."""
        return {f"muon.{name}.{key}": value for name, s in self.state_dict().items() for key, value in s.items()}

    def empty_tensors(self, stored: set[str]) -> dict[str, Tensor]:
        """State to be filled from a checkpoint that holds the names `stored`; it is in place already."""
        if self.inner is None:
            return {}
        self.inner.state.clear()
        for name, scratch in self._scratches.items():
            if f"muon.{name}.momentum" in stored:
                self.inner.state[scratch] = {"momentum": torch.zeros_like(scratch, requires_grad=False)}
        return self.tensors()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.inner is None:
            return
        self.inner.state.clear()
        for name, values in state.items():
            self.inner.state[self._scratches[name]] = {key: value.clone() for key, value in values.items()}


def _messages(matrices: list[_Matrix]) -> list[list[_Matrix]]:
    """The matrices in runs of about MESSAGE numbers, the same runs on all ranks."""
    found: list[list[_Matrix]] = []
    size = MESSAGE
    for m in matrices:
        if size >= MESSAGE:
            found.append([])
            size = 0
        found[-1].append(m)
        size += m.p.numel()
    return found


def _deal_back(matrices: list[_Matrix], flat: Tensor, sizes: list[int], ranks: int) -> list[Tensor]:
    """Cut a message that is ordered by owner; the parts in the order of the matrices, shaped as they are held."""
    order = [i for owner in range(ranks) for i, m in enumerate(matrices) if m.owner == owner]
    parts: list[Tensor] = [flat] * len(matrices)
    for i, part in zip(order, flat.split([sizes[i] for i in order]), strict=True):
        parts[i] = part.view(local(matrices[i].p).shape)
    return parts


def _like(value: Tensor, p: Tensor) -> Tensor:
    """This rank's part of a tensor shaped like p, placed as p is."""
    if not isinstance(p, DTensor):
        return value
    return DTensor.from_local(value, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
