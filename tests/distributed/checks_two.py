"""What two processes must get right. Every function runs on both ranks."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from dsv4.distributed.collectives import exchange, gather_rows, sum_flat
from dsv4.distributed.mesh import EXPERT_COPIES, Mesh
from dsv4.distributed.optimizers import deal
from dsv4.distributed.ranks import Ranks
from dsv4.parameters import Mover
from dsv4.training.param_groups import place
from dsv4.training.settings import Scale
from tests.distributed.whole_runs import INTEGERS, everywhere_equal, expected_lines, full, same_losses, trainer_of


def mesh_says_what_is_wrong(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"fsdp 4 .* needs 4 processes, but 2 were started"):
        Mesh(Scale(fsdp=4))
    mesh = Mesh(Scale(expert=2))
    assert (mesh.sample_rank, mesh.sample_world) == (dist.get_rank(), 2)
    assert mesh.size(*EXPERT_COPIES) == 1
    assert Mesh(Scale(context=2)).sample_world == 1


def rows_travel_with_gradients(folder: Path) -> None:
    rank, group = dist.get_rank(), dist.group.WORLD
    x = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_()
    # rank 0 sends 1 and 2 rows, rank 1 sends 3 and none
    send = [[1, 2], [3, 0]][rank]
    out = exchange(x, send, [[1, 3], [2, 0]][rank], group)
    first = torch.cat([torch.tensor([[0.0, 1.0]]), torch.arange(6.0).view(3, 2) + 10])
    assert torch.equal(out, first if rank == 0 else torch.arange(6.0).view(3, 2)[1:])
    (out * (rank + 1)).sum().backward()
    went = torch.tensor([1.0, 2, 2]) if rank == 0 else torch.ones(3)
    assert torch.equal(x.grad, went[:, None].expand(3, 2))

    counts = [2, 1]
    y = torch.randn(counts[rank], 3, requires_grad=True)
    everything = gather_rows(y, counts, group)
    assert everywhere_equal(everything)
    (everything * torch.arange(1.0, 4)[:, None] * (rank + 1)).sum().backward()
    mine = torch.tensor([[1.0, 2], [3, 0]])[rank][: counts[rank]]
    assert torch.allclose(y.grad, 3 * mine[:, None].expand(-1, 3))

    nothing = gather_rows(torch.zeros(0, 3, requires_grad=True), [0, 0], group)
    assert nothing.shape == (0, 3)
    sums = [torch.full((3,), rank + 1.0), torch.full((2, 2), 10.0 * rank)]
    sum_flat(sums, group, bucket=2)
    assert [float(s.sum()) for s in sums] == [9.0, 40.0]


def gradients_are_summed_and_missing_ones_stay(folder: Path) -> None:
    team, rank = Ranks(Mesh(Scale(data=2))), dist.get_rank()
    both, one, none = (torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    both.grad = torch.full((2, 3), rank + 1.0)
    if rank == 1:
        one.grad = torch.full((2, 3), 5.0)
    named = [("both", both), ("one", one), ("none", none)]
    team.sum_gradients(named)
    assert torch.equal(both.grad, torch.full((2, 3), 3.0))
    assert torch.equal(one.grad, torch.full((2, 3), 5.0))
    assert none.grad is None
    norm = team.clip(named, 1.0)
    assert norm == pytest.approx((6 * 9 + 6 * 25) ** 0.5)
    assert float(torch.cat([both.grad, one.grad]).norm()) == pytest.approx(1.0)


def plain_data_parallel_equals_one_process(folder: Path) -> None:
    run = same_losses(Scale(data=2), folder)
    for p in run.model.parameters():
        assert everywhere_equal(p)


def shards_equal_one_process(folder: Path) -> None:
    run = same_losses(Scale(fsdp=2), folder)
    cut = {name: p for name, p in run.model.named_parameters() if isinstance(p, DTensor)}
    assert {"embed.weight", "head.weight", "layers.1.attn.indexer.wq_b.weight", "mtp.0.e_proj.weight"} <= cut.keys()
    assert not any(".experts." in name or "scale" in name or "norm" in name for name in cut)
    for name, p in cut.items():
        assert p.to_local().shape[0] <= -(-p.shape[0] // 2), name
    for p in run.model.parameters():
        assert everywhere_equal(full(p))


def data_parallel_in_integers_equals_one_process(folder: Path) -> None:
    run = same_losses(Scale(data=2), folder, **INTEGERS)
    for p in run.model.parameters():
        assert everywhere_equal(p)


def shards_in_integers_equal_one_process(folder: Path) -> None:
    run = same_losses(Scale(fsdp=2), folder, **INTEGERS)
    for p in run.model.parameters():
        assert everywhere_equal(full(p))


def each_matrix_has_one_owner(folder: Path) -> None:
    assert deal([5, 9, 1, 4], 2) == [1, 0, 0, 1]
    assert deal([], 3) == []
    run = trainer_of(Scale(fsdp=2), folder)
    every: list[set[str]] = [set(), set()]
    dist.all_gather_object(every, run.optimizers.muon.owned)
    assert not every[0] & every[1]
    matrices = {
        p.name
        for p in place(run.model.config, [name for name, _ in run.model.named_parameters()])
        if p.mover is Mover.MUON
    }
    assert matrices == every[0] | every[1]
    sizes = dict(run.model.named_parameters())
    loads = [sum(sizes[name].numel() for name in names) for names in every]
    assert max(loads) < 1.2 * min(loads)
    run.advance()
    assert run.optimizers.state_dict()["ownedmatrices"].keys() <= run.optimizers.muon.owned


def bf16_with_masters_trains(folder: Path) -> None:
    run = trainer_of(Scale(fsdp=2), folder, run={"numerics": "bf16", "recompute": True, "save_seconds": 1e9})
    lines = list(run.run())
    (folder / "alone").mkdir(exist_ok=True)
    expected = expected_lines(2, folder / "alone", {"run": {"numerics": "bf16", "save_seconds": 1e9}})
    for ours, theirs in zip(lines, expected, strict=True):
        assert abs(ours.losses["next"] - theirs["next"]) < 2e-2
