"""The mesh of ranks over (data, fsdp, context, expert), made from the environment that torchrun sets.

data: whole copies of the dense weights. fsdp: ranks that share one copy of them. context: ranks that share each
sequence. expert: ranks that share the routed experts. Ranks of one context group see the same sequences, all others
different ones.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from dsv4.training.settings import AXES, Scale


def launched() -> bool:
    """Whether torchrun (or something that sets the same variables) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def started_world() -> int:
    """Number of processes that were started together: 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


class Mesh:
    """This process's place, and process groups by the axes they run along.

    `group("data", "fsdp")` holds the ranks that differ from this one along these axes only, ordered as the axes are.
    Every rank must build the mesh, and close it at the end if it was made by `start`.
    """

    def __init__(self, scale: Scale, device: str = "cpu") -> None:
        scale.check(dist.get_world_size())
        self.scale = scale
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)
        self.devices = DeviceMesh(device, torch.arange(self.world).view(scale.sizes), mesh_dim_names=AXES)
        self._groups: dict[tuple[str, ...], Any] = {}
        # groups are made by all ranks together, so all that will be used are made here
        for axes in (("context",), ("expert",), ("fsdp",), *_COPIES, ("data", "fsdp", "expert")):
            self._groups[axes] = self._make(axes)

        self._patient: Any = dist.new_group(backend="gloo", timeout=timedelta(days=7))

    @classmethod
    def start(cls, scale: Scale, device: str = "cpu") -> "Mesh":
        """Join the processes that torchrun started, by gloo on CPUs; "cuda": by nccl, each process on the card that has
        its number on this machine, which has not run on cards yet. Raises ValueError for a wrong count."""
        scale.check(started_world())
        if device == "cuda":
            number, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if number >= cards:
                raise ValueError(f"run.device cuda: each process needs a card of its own, and torch sees {cards}")
            torch.cuda.set_device(number)
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=scale.timeout))
        return cls(scale, device)

    def wait(self) -> None:
        """Wait for all ranks without a time limit: for work that one rank does for all."""
        dist.barrier(group=self._patient)

    def close(self) -> None:
        dist.destroy_process_group()

    def _make(self, axes: Sequence[str]) -> Any:
        ranks = torch.arange(self.world).view(self.scale.sizes)
        inside = [AXES.index(axis) for axis in axes]
        outside = [i for i in range(len(AXES)) if i not in inside]
        rows = ranks.permute(*outside, *inside).reshape(-1, prod(self.scale.sizes[i] for i in inside))
        timeout = timedelta(seconds=self.scale.timeout)
        found, _ = dist.new_subgroups_by_enumeration(rows.tolist(), timeout=timeout)
        return found

    def group(self, *axes: str) -> Any:
        """The process group along some of the axes; all four are the world."""
        return dist.group.WORLD if axes == AXES else self._groups[axes]

    def size(self, *axes: str) -> int:
        return prod(getattr(self.scale, axis) for axis in axes)

    def place(self, axis: str) -> int:
        """This rank's number along an axis."""
        return self.devices.get_local_rank(axis)

    @property
    def sample_rank(self) -> int:
        """Which share of a step's sequences this rank learns from; ranks of a context group have the same."""
        s = self.scale
        return (self.place("data") * s.fsdp + self.place("fsdp")) * s.expert + self.place("expert")

    @property
    def sample_world(self) -> int:
        return self.scale.data * self.scale.fsdp * self.scale.expert


# ranks that hold the same dense shard, the same whole dense weight, the same experts
SHARD_COPIES = ("data", "context", "expert")
WHOLE_COPIES = AXES
EXPERT_COPIES = ("data", "fsdp", "context")
_COPIES = (SHARD_COPIES, EXPERT_COPIES)
