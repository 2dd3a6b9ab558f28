"""Which optimiser moves which parameter (report 2.4), and what in it is one matrix.

Muon moves every matrix of a linear map: attention, compressors, indexer, experts, router, the projections of the
hyper-connections. AdamW moves the rest: embedding, head, norm weights, static biases and gates of the
hyper-connections, attention sinks and the compressors' position biases.

Two choices that the report leaves open. Position biases (`ape`, [m, C]) are added to scores, one number per place and
channel; they map nothing to nothing, so their singular values mean nothing, and they go with the other biases. Decay
follows the remark in the V4.1 report: norm weights are decayed, biases and scales are not.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dsv4.config import CSA_RATIO, ModelConfig
from dsv4.model.transformer import Transformer
from dsv4.training.muon import Muon

ADAMW_BETAS = (0.9, 0.95)
ADAMW_EPS = 1e-20
DECAY = 0.1


class Mover(StrEnum):
    """Who changes a parameter."""

    MUON = "Muon"
    ADAMW = "AdamW"
    BALANCE = "balance"  # router biases: `balance.move_biases`, no gradient


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one parameter belongs. rows: heights of the matrices stored in it; () = it is one."""

    name: str
    shape: tuple[int, ...]
    mover: Mover
    decay: bool
    rows: tuple[int, ...] = ()

    @property
    def matrices(self) -> int:
        return len(self.rows) or 1


def pieces(name: str, config: ModelConfig) -> tuple[int, ...]:
    """Heights of the logically independent matrices stored in the parameter `name`; () = it is one matrix.

    Apart are: the output groups of wo_a, the two maps of an overlapping compressor (one for the block itself, one for
    the next; eqs 9-10), and the three maps of a hyper-connection (eqs 3-5). Experts, gates and linear parts are stored
    apart already. The query up-projection is one matrix: V4.1 calls splitting it by heads a change.
    """
    last = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if last == "wo_a":
        return (config.o_lora_rank,) * config.o_groups if config.o_groups > 1 else ()
    if last in ("hc_attn_fn", "hc_ffn_fn"):
        return (config.hc_mult, config.hc_mult, config.hc_mult**2)
    if ".compressor." in name and last in ("wkv", "wgate"):
        width = config.index_head_dim if ".indexer." in name else config.head_dim
        layer = int(name.split(".")[1])
        if config.compress_ratios[layer] == CSA_RATIO:
            return (width, width)
    return ()


def place(config: ModelConfig, named: Iterable[tuple[str, Tensor]]) -> list[Placement]:
    """Every parameter's place, in the order given. Raises ValueError naming one that no rule covers."""
    placed = []
    for name, tensor in named:
        last = name.removesuffix(".weight").rsplit(".", 1)[-1]
        shape, matrix = tuple(tensor.shape), tensor.dim() == 2
        if name.endswith("gate.bias"):
            placed.append(Placement(name, shape, Mover.BALANCE, False))
        elif name in ("embed.weight", "head.weight") or (last.endswith("norm") and tensor.dim() == 1):
            placed.append(Placement(name, shape, Mover.ADAMW, True))
        elif last.endswith(("_base", "_scale")) or last in ("attn_sink", "ape"):
            placed.append(Placement(name, shape, Mover.ADAMW, False))
        elif matrix and (name.endswith(".weight") or last.endswith("_fn")):
            placed.append(Placement(name, shape, Mover.MUON, True, pieces(name, config)))
        else:
            raise ValueError(f"no optimiser is known for the parameter {name!r} of shape {list(shape)}")
    return placed


@dataclass(frozen=True, slots=True)
class Optimizers:
    """Both optimisers of a model behind one step; the learning rate is the same for both (report 2.4). muon: None where
    AdamW moves everything."""

    muon: Muon | None
    adamw: torch.optim.AdamW

    @property
    def all(self) -> list[torch.optim.Optimizer]:
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
    named: Iterable[tuple[str, nn.Parameter]],
    lr: float = 2.7e-4,
    *,
    kind: Literal["muon", "adamw"] = "muon",
    decay: float = DECAY,
    **muon: Any,
) -> Optimizers:
    """Optimisers over named parameters (or fp32 masters of them), each in exactly one group.

    The order of groups and of parameters within them depends on the names given and their order alone. `muon`: further
    settings of `Muon`. kind="adamw" gives the matrices to AdamW too, as a control. Raises ValueError for a name
    no rule covers or one that comes twice.
    """
    tensors: dict[str, nn.Parameter] = {}
    for name, tensor in named:
        if name in tensors:
            raise ValueError(f"the parameter {name!r} came twice")
        tensors[name] = tensor
    matrices: dict[tuple[int, ...], list[nn.Parameter]] = {}
    vectors: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for placed in place(config, tensors.items()):
        tensor = tensors[placed.name]
        if placed.mover is Mover.MUON and kind == "muon":
            matrices.setdefault(placed.rows, []).append(tensor)
        elif placed.mover is not Mover.BALANCE:
            vectors[placed.decay].append(tensor)
    groups = [{"params": params, "rows": rows} for rows, params in matrices.items()]
    adam = [{"params": params, "weight_decay": decay * decays} for decays, params in vectors.items()]
    adamw = torch.optim.AdamW(adam, lr=lr, betas=ADAMW_BETAS, eps=ADAMW_EPS, fused=True)
    return Optimizers(Muon(groups, lr=lr, weight_decay=decay, **muon) if groups else None, adamw)


def table(model: Transformer) -> str:
    """The placement of a model's parameters for people: one line per kind, layers and experts counted together."""
    lines: dict[tuple[str, ...], list[int]] = {}
    for p in place(model.config, model.named_parameters()):
        kind = ".".join("*" if part.isdigit() else part for part in p.name.split("."))
        size = " x ".join(map(str, p.shape)) + (f" cut into {'+'.join(map(str, p.rows))}" if p.rows else "")
        key = (kind, p.mover.value, "yes" if p.decay else "no", size)
        counts = lines.setdefault(key, [0, 0])
        counts[0] += p.matrices
        counts[1] += torch.Size(p.shape).numel()
    rows = [("parameter", "moved by", "decay", "shape", "pieces", "numbers")]
    rows += [(*key, f"{count:,}", f"{numbers:,}") for key, (count, numbers) in lines.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    aligned = [
        [cell.ljust(w) if i < 4 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return "\n".join("  ".join(row) for row in aligned)
