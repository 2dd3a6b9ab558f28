"""Experts split over two processes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from dsv4.config import ModelConfig
from dsv4.distributed import expert_parallel
from dsv4.distributed.mesh import Mesh
from dsv4.model.init import init_weights
from dsv4.model.moe import MoE
from dsv4.model.transformer import Transformer
from dsv4.training.settings import Scale
from tests.distributed.whole_runs import everywhere_equal, same_losses, small_recipe


def _layer(config: ModelConfig) -> MoE:
    return init_weights(Transformer(config), 1).layers[1].ffn


def _step(ids_TK: torch.Tensor) -> SimpleNamespace:
    regime = SimpleNamespace(routes={1: ids_TK})
    return SimpleNamespace(regime=regime, tokens_T=ids_TK[:, 0], observer=None)


def dispatch_matches_one_process(folder: Path) -> None:
    """Even and uneven loads, an expert without tokens, everything on one rank, a rank without tokens of its own."""
    config, rank, mesh = small_recipe().config(97), dist.get_rank(), Mesh(Scale(expert=2))
    cases = {
        "uneven": [[[0, 1], [0, 3], [2, 0], [0, 1]], [[1, 0], [3, 0]]],
        "one expert idle": [[[0, 1], [0, 2]], [[2, 1], [1, 0], [0, 2]]],
        "all on one rank": [[[2, 3], [3, 2]], [[3, 2], [2, 3], [2, 3]]],
        "rank 1 has no tokens": [[[0, 3], [1, 2]], torch.zeros(0, 2).tolist()],
    }
    for name, ids in cases.items():
        every = [torch.tensor(one, dtype=torch.int64).view(-1, 2) for one in ids]
        x = [
            torch.randn(len(one), config.hidden_size, generator=torch.Generator().manual_seed(i))
            for i, one in enumerate(every)
        ]
        whole, mine = _layer(config), expert_parallel.SplitMoE(_layer(config), mesh.group("expert"))
        inputs, own = torch.cat(x).requires_grad_(), x[rank].clone().requires_grad_()
        expected = whole(inputs, _step(torch.cat(every)))
        expected.square().sum().backward()
        out = mine(own, _step(every[rank]))
        out.square().sum().backward()
        first = rank * len(x[0])
        span = slice(first, first + len(own))
        torch.testing.assert_close(out, expected[span], msg=name)
        torch.testing.assert_close(own.grad, inputs.grad[span], msg=name)
        for part, p in mine.experts.named_parameters():
            theirs = whole.experts.get_parameter(part).grad
            assert (p.grad is None) == (theirs is None), (name, part)
            if theirs is not None:
                torch.testing.assert_close(p.grad, theirs, msg=f"{name}: {part}")
        with torch.no_grad():
            torch.testing.assert_close(mine(own, _step(every[rank])), expected[span])


def experts_keep_their_names(folder: Path) -> None:
    config, mesh = small_recipe().config(97), Mesh(Scale(expert=2))
    with pytest.raises(ValueError, match=r"scale\.expert must divide n_routed_experts 4, got 3"):
        expert_parallel.check(config, 3)
    mine = expert_parallel.SplitMoE(_layer(config), mesh.group("expert"))
    first = 2 * dist.get_rank()
    names = {name.split(".")[1] for name, _ in mine.named_parameters() if name.startswith("experts.")}
    assert names == {str(first), str(first + 1)}


def split_experts_equal_one_process(folder: Path) -> None:
    run = same_losses(Scale(expert=2), folder)
    for name, p in run.model.named_parameters():
        if ".ffn.experts." not in name:
            assert everywhere_equal(p), name
