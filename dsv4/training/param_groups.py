"""The optimisers of a model (report 2.4): Muon over the matrices of its linear maps, AdamW over the rest.

The table of `dsv4.parameters` assigns each parameter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import nn

from dsv4.config import ModelConfig
from dsv4.model.lora import layer_of
from dsv4.model.transformer import Transformer
from dsv4.parameters import Mover, Parameter, Storage, parameter_table
from dsv4.training.muon import Muon

DECAY = 0.1

Named = Iterable[tuple[str, nn.Parameter]]


def place(config: ModelConfig, names: Iterable[str]) -> list[Parameter]:
    """What the table says of each name, in the order given; an adapter's matrices have the role of their layer. Raises
    ValueError for a name that is not in it."""
    known = parameter_table(config)
    found = []
    for name in names:
        layer = layer_of(name)
        parameter = known.get(name if layer is None else f"{layer}.weight")
        if parameter is None:
            raise ValueError(f"no optimiser is known for the parameter {name!r}: the model has none of that name")
        adapter = replace(parameter, name=name, storage=Storage.FLOAT, mover=Mover.MUON, rows=())
        found.append(parameter if layer is None else adapter)
    return found


@dataclass(frozen=True, slots=True)
class Groups:
    """Named parameters by optimiser. matrices: those of Muon, by the heights of the matrices that one parameter stores.
    vectors: those of AdamW, by whether they decay."""

    matrices: Mapping[tuple[int, ...], list[tuple[str, nn.Parameter]]]
    vectors: Mapping[bool, list[tuple[str, nn.Parameter]]]

    @classmethod
    def of(cls, config: ModelConfig, named: Named, kind: Literal["muon", "adamw"]) -> "Groups":
        """The order of groups and of parameters within them depends on the names given and their order alone.
        kind="adamw" gives the matrices to AdamW too. Raises ValueError for a name that is unknown or comes twice."""
        tensors: dict[str, nn.Parameter] = {}
        for name, tensor in named:
            if name in tensors:
                raise ValueError(f"the parameter {name!r} came twice")
            tensors[name] = tensor
        matrices: dict[tuple[int, ...], list[tuple[str, nn.Parameter]]] = {}
        vectors: dict[bool, list[tuple[str, nn.Parameter]]] = {True: [], False: []}
        for parameter in place(config, tensors):
            one = (parameter.name, tensors[parameter.name])
            if parameter.mover is Mover.MUON and kind == "muon":
                matrices.setdefault(parameter.rows, []).append(one)
            elif parameter.mover is not Mover.BALANCE:
                vectors[parameter.decay].append(one)
        return cls(matrices, vectors)


class Optimizer(Protocol):
    """What a step calls of a torch.optim.Optimizer, or of one over several ranks (`dsv4.distributed.optimizers`)."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def step(self) -> Any: ...

    def zero_grad(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None: ...


@dataclass(frozen=True, slots=True)
class Optimizers:
    """Both optimisers of a model behind one step; the learning rate is the same for both (report 2.4). muon: None where
    AdamW moves everything."""

    muon: Optimizer | None
    adamw: Optimizer

    @property
    def all(self) -> list[Optimizer]:
        return [self.adamw] if self.muon is None else [self.muon, self.adamw]

    def set_lr(self, lr: float) -> None:
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = lr

    def step(self) -> None:
        for optimizer in self.all:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.all:
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {type(optimizer).__name__.lower(): optimizer.state_dict() for optimizer in self.all}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer in self.all:
            optimizer.load_state_dict(state[type(optimizer).__name__.lower()])


def make_optimizers(
    config: ModelConfig,
    named: Named,
    lr: float = 2.7e-4,
    *,
    kind: Literal["muon", "adamw"] = "muon",
    decay: float = DECAY,
    **muon: Any,
) -> Optimizers:
    """Optimisers over named parameters (or fp32 masters of them), each in exactly one group.

    The order of groups and of parameters within them depends on the names given and their order alone. `muon`: further
    settings of `Muon`. kind="adamw" gives the matrices to AdamW too, as a control. Raises ValueError for a name
    that is unknown or comes twice.
    """
    found = Groups.of(config, named, kind)
    groups = [{"params": [p for _, p in members], "rows": rows} for rows, members in found.matrices.items()]
    adam = [{"params": [p for _, p in members], "weight_decay": decay * on} for on, members in found.vectors.items()]
    return Optimizers(Muon(groups, lr=lr, weight_decay=decay, **muon) if groups else None, make_adamw(adam, lr))


def make_adamw(groups: list[dict[str, Any]], lr: float) -> torch.optim.AdamW:
    """AdamW with the settings of the report."""
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-20, fused=True)


def table(model: Transformer) -> str:
    """The optimiser of each parameter of a model, as text: one line per kind, layers and experts counted together."""
    lines: dict[tuple[str, ...], list[int]] = {}
    for p in place(model.config, [name for name, _ in model.named_parameters()]):
        kind = ".".join("*" if part.isdigit() else part for part in p.name.split("."))
        size = " x ".join(map(str, p.shape)) + (f" cut into {'+'.join(map(str, p.rows))}" if p.rows else "")
        key = (kind, p.mover.value, "yes" if p.decay else "no", size)
        counts = lines.setdefault(key, [0, 0])
        counts[0] += p.matrices
        counts[1] += p.numbers
    rows = [("parameter", "moved by", "decay", "shape", "pieces", "numbers")]
    rows += [(*key, f"{count:,}", f"{numbers:,}") for key, (count, numbers) in lines.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    aligned = [
        [cell.ljust(w) if i < 4 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return "\n".join("  ".join(row) for row in aligned)
