"""Training against the released number formats on several ranks.

A difference in the last bit of a weight can round to another FP8 or FP4 code, which moves the loss by 1e-4 and what
follows by more, in one process as well. So here one process is given the ranks' weights before every step: from the
same bits both must come to the same loss and the same update.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from dsv4.distributed.fsdp import own_rows
from dsv4.distributed.gradients import local
from dsv4.distributed.mesh import Mesh
from dsv4.distributed.qat import released_shard
from dsv4.parameters import Parameter, Role, Storage
from dsv4.training.qat import FakeQuantised, released_value
from dsv4.training.settings import Scale
from dsv4.training.trainer import Trainer
from tests.distributed.whole_runs import LOSSES, STAGES, Prepare, alone, foresee, trainer_of

RUN = {"stages": [*STAGES[:2], {"tokens": 300, "length": 64}], "qat_from": 350}  # on while still dense


def gathered(named: Iterable[tuple[str, nn.Parameter]], mesh: Mesh) -> dict[str, Tensor]:
    """Whole weights of all ranks on the first one, nothing on the others."""
    own = {name: (mesh.place("fsdp") * isinstance(p, DTensor), local(p.detach())) for name, p in named}
    every: list[Any] = [None] * mesh.world
    dist.gather_object(own, every if mesh.rank == 0 else None)
    parts: dict[str, dict[int, Tensor]] = {}
    for held in every if mesh.rank == 0 else []:
        for name, (place, value) in held.items():
            parts.setdefault(name, {})[place] = value
    return {name: torch.cat([found[place] for place in sorted(found)]) for name, found in parts.items()}


def quantised(run: Trainer, one: Trainer | None, mesh: Mesh) -> None:
    """While it lasts, all ranks and the one process compute with the same bits, and afterwards nothing is left."""
    assert isinstance(run._fake, FakeQuantised)
    before = [local(p.detach()).clone() for p in run.model.parameters()]
    with run._fake:
        inside = gathered(run.model.named_parameters(), mesh)
    assert all(torch.equal(kept, local(p)) for kept, p in zip(before, run.model.parameters(), strict=True))
    if one is not None:
        assert isinstance(one._fake, FakeQuantised)
        cast = [(rule.name, p) for rule, p in one._fake._cast]
        assert sum(not torch.equal(inside[name], p) for name, p in cast) > 0.7 * len(cast)
        with one._fake:
            for name, p in one.model.named_parameters():
                assert torch.equal(inside[name], p), name


def same_from_the_same_weights(scale: Scale, folder: Path, prepare: Prepare | None = None, **changes: Any) -> None:
    """A run that is quantised after a few steps, against one process that gets the ranks' weights every time.
    Updates are compared in fp32 only: under bf16, gradients of shards are added in bf16."""
    changes = {**RUN, **changes}
    run, one = trainer_of(scale, folder, **changes), None
    if dist.get_rank() == 0:
        (folder / "alone").mkdir(exist_ok=True)
        one = alone(folder / "alone", scale.data * scale.fsdp * scale.expert, **changes)
    for trainer in (run, one):
        if prepare is not None and trainer is not None:
            prepare(trainer)
    mesh = Mesh(scale)
    seen, weights = set(), gathered(run.masters.named_parameters(), mesh)
    while not run.done:
        if one is not None:
            one.masters.load_state_dict(weights)
        if run.schedule.at(run.tokens).qat:
            quantised(run, one, mesh)
        ours, weights = run.advance().to_dict(), gathered(run.masters.named_parameters(), mesh)
        seen.add((ours["phase"], ours["qat"]))
        if one is not None:
            compare(ours, one.advance().to_dict())
            assert isinstance(one._fake, FakeQuantised)
            theirs = one.masters.state_dict()
            for rule, _ in one._fake._cast:
                if rule.storage in (Storage.LINEAR, Storage.EXPERT) and run.recipe.run.numerics == "fp32":
                    assert float((weights[rule.name] - theirs[rule.name]).abs().max()) < 1e-5, rule.name
        dist.barrier()
    assert seen == {("dense", False), ("dense", True), ("warmup", True), ("sparse", True)}


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The losses and the gradient's norm of one step."""
    for name in LOSSES:
        assert (name in ours) == (name in theirs)
        difference = abs(ours.get(name, 0.0) - theirs.get(name, 0.0))
        assert difference <= 1e-5, f"step {ours['step']}: {name} {ours[name]} is not {theirs[name]}"
    assert abs(ours["grad_norm"] - theirs["grad_norm"]) <= 1e-4 * max(1.0, theirs["grad_norm"])


def quantised_copies(folder: Path) -> None:
    same_from_the_same_weights(Scale(data=2), folder)


def quantised_shards(folder: Path) -> None:
    same_from_the_same_weights(Scale(fsdp=2), folder)


def quantised_shards_routed_ahead(folder: Path) -> None:
    """Routing ahead gathers weights before the step that casts them."""
    same_from_the_same_weights(Scale(fsdp=2), folder, foresee)


def quantised_shards_with_masters(folder: Path) -> None:
    run = {"numerics": "bf16", "recompute": True, "save_seconds": 1e9}
    same_from_the_same_weights(Scale(fsdp=2), folder, run=run)


def quantised_experts(folder: Path) -> None:
    same_from_the_same_weights(Scale(expert=2), folder)


def quantised_documents(folder: Path) -> None:
    same_from_the_same_weights(Scale(context=2), folder)


def quantised_shards_of_four(folder: Path) -> None:
    same_from_the_same_weights(Scale(fsdp=4), folder)


def quantised_shards_and_experts(folder: Path) -> None:
    same_from_the_same_weights(Scale(fsdp=2, expert=2), folder)


def quantised_shards_and_documents_routed_ahead(folder: Path) -> None:
    same_from_the_same_weights(Scale(fsdp=2, context=2), folder, foresee)


def rows_are_cast_in_the_blocks_of_the_whole_matrix(folder: Path) -> None:
    """Borders inside blocks and between them, parts smaller than a block, ranks without rows."""
    ranks = dist.get_world_size()
    mesh = Mesh(Scale(fsdp=ranks)).devices["fsdp"]
    for rows in (1, 3, 100, 128, 256, 300, 512, 1000):
        for storage in (Storage.LINEAR, Storage.PLAIN):
            # rows of very different size: a block's scale shows which rows it was made of
            size_N1 = torch.logspace(-3, 0, rows)[torch.randperm(rows, generator=torch.Generator().manual_seed(rows))]
            whole = torch.randn(rows, 160, generator=torch.Generator().manual_seed(1)) * size_N1[:, None]
            rule, cut = (
                Parameter("x.weight", Role.ATTENTION, storage, (rows, 160)),
                distribute_tensor(whole, mesh, [Shard(0)]),
            )
            first, last = own_rows(cut)
            assert last - first == cut.to_local().shape[0]
            assert torch.equal(released_shard(rule, cut), released_value(rule, whole)[first:last]), (rows, storage)
