"""Whole training runs in one process and in several, to be compared step by step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from dsv4.distributed.mesh import Mesh
from dsv4.distributed.ranks import Ranks
from dsv4.training.anticipate import BatchQueue
from dsv4.training.data import BatchReader, open_sources
from dsv4.training.muon import UPDATE_RMS
from dsv4.training.recipe import Recipe
from dsv4.training.settings import Scale
from dsv4.training.team import Alone
from dsv4.training.trainer import Trainer
from tests.training.runs import Letters, raw_recipe

LR = 1e-3  # the largest
STAGES = [
    {"tokens": 450, "length": 64, "phase": "dense"},
    {"tokens": 200, "length": 64, "phase": "warmup", "lr": LR},
    {"tokens": 400, "length": 64},
]
LOSSES = ("next", "mtp", "balance", "indexer")
RECALL = ("recall_entries", "recall_mass")
SUMS = 1e-5  # how far a loss may be from that of one process: sums are rounded in another order
INT16 = 0.02  # relative error of an update by 16-bit integers (tests/kernels/test_newton_schulz.py holds it to that)
INTEGERS = {"optimizer": {"products": "int16"}}


def small_recipe(**changes: Any) -> Recipe:
    """Two dense steps, one of indexer warm-up, two sparse ones. Muon multiplies in float32 unless `changes` say
    otherwise, so that runs on different ranks differ by their sums alone."""
    lr = {"peak": LR, "final": 1e-4, "warmup": 256, "decay_from": 800, "decay_to": 1050}
    batch = {"full": 160}  # four packed sequences a step, for two ranks as for four
    fixed = {"stages": STAGES, "lr": lr, "batch": batch, "qat_from": None, "optimizer": {"products": "fp32"}}
    return Recipe.from_dict(raw_recipe(**{**fixed, **changes}))


def trainer_of(scale: Scale, folder: Path, **changes: Any) -> Trainer:
    """This rank's trainer."""
    recipe, codec = small_recipe(**changes), Letters()
    return Trainer(recipe, folder, codec, open_sources(recipe, codec, folder), team=Ranks(Mesh(scale)))


def alone(folder: Path, shares: int, **changes: Any) -> Trainer:
    """One process that learns from what `shares` ranks would learn from together."""
    recipe, codec = small_recipe(**changes), Letters()
    sources = open_sources(recipe, codec, folder)
    run = Trainer(recipe, folder, codec, sources, team=Alone())
    feeds = [
        BatchReader(sources, recipe.data, recipe.schedule, codec, seed=recipe.seed, rank=rank, world=shares)
        for rank in range(shares)
    ]
    run.reader = feeds[0]
    run._queue = BatchQueue(lambda step: [b for feed in feeds for b in feed.fetch(step)], run._route)
    return run


def lean(run: Trainer) -> None:
    """Biases so strong that nearly all tokens go to the first two experts."""
    for name, p in run.model.named_parameters():
        if name.endswith("gate.bias"):
            p.copy_(torch.tensor([8.0, 4.0, 0.0, 0.0]))


def foresee(run: Trainer) -> None:
    """Anticipatory routing from the first step on, as after a spike."""
    run.recovery._until = 1000


Prepare = Callable[[Trainer], None]


_KNOWN: dict[tuple[int, str, Prepare | None], list[dict[str, Any]]] = {}


def expected_lines(
    shares: int, folder: Path, changes: dict[str, Any], prepare: Prepare | None = None
) -> list[dict[str, Any]]:
    """The log of the run in one process, the same on all ranks; computed once on rank 0."""
    told: list[Any] = [None]
    if dist.get_rank() == 0:
        key = (shares, json.dumps(changes), prepare)
        if key not in _KNOWN:
            run = alone(folder, shares, **changes)
            if prepare is not None:
                prepare(run)
            _KNOWN[key] = [line.to_dict() for line in run.run()]
        told = [_KNOWN[key]]
    dist.broadcast_object_list(told)
    return told[0]


def same_losses(scale: Scale, folder: Path, prepare: Prepare | None = None, **changes: Any) -> Trainer:
    """Train on all ranks and compare every step's losses with the run in one process; returns the finished trainer."""
    shares = scale.data * scale.fsdp * scale.expert
    run = trainer_of(scale, folder, **changes)
    if prepare is not None:
        prepare(run)
    lines = [line.to_dict() for line in run.run()]
    (folder / "alone").mkdir(exist_ok=True)
    expected = expected_lines(shares, folder / "alone", changes, prepare)
    assert [x["phase"] for x in lines] == [x["phase"] for x in expected]
    assert {"dense", "warmup", "sparse"} <= {x["phase"] for x in lines}
    assert len(lines) >= 4, len(lines)
    steepest = max(x["grad_norm"] for x in expected)
    for updates, (ours, theirs) in enumerate(zip(lines, expected, strict=True)):
        tolerance = allowed(run.recipe, updates, steepest)
        for name in LOSSES:
            assert (name in ours) == (name in theirs)
            difference = abs(ours.get(name, 0.0) - theirs.get(name, 0.0))
            assert difference <= tolerance, f"step {ours['step']}: {name} {ours[name]} is not {theirs[name]}"
        assert abs(ours["grad_norm"] - theirs["grad_norm"]) <= 1e-4 * max(1.0, theirs["grad_norm"])
        assert ours["max_violation"] == pytest.approx(theirs["max_violation"], abs=1e-6), ours["step"]
        for name in RECALL if scale.context == 1 else ():  # ranks that share documents pick other queries
            assert ours.get(name) == pytest.approx(theirs.get(name), abs=tolerance), f"step {ours['step']}: {name}"
    return run


def allowed(recipe: Recipe, updates: int, norm: float) -> float:
    """How far losses of two runs may be apart after some updates, where gradients have at most this norm.

    With products in 16-bit integers the last bit of a gradient turns an integer over, and every later product rounds
    other numbers: from then on the runs round independently. Each update is within INT16 of the exact one, so two of
    them differ by about sqrt(2) INT16, in entries of LR UPDATE_RMS. Such roundings do not know the gradient: along it
    they add up as a random walk, whose standard deviation is |gradient| times that of an entry. Four of them are
    allowed.
    """
    if recipe.optimizer.products == "fp32":
        return SUMS
    return SUMS + 4 * norm * LR * UPDATE_RMS * INT16 * (2 * updates) ** 0.5


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor of which a rank may hold a shard; all ranks of its mesh must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def everywhere_equal(tensor: torch.Tensor) -> bool:
    """Whether all ranks hold the same bits."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return all(one == found[0] for one in found)
