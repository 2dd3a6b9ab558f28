"""Documents split over two processes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dsv4.distributed.context_parallel import ContextSplit, reach
from dsv4.distributed.mesh import Mesh
from dsv4.distributed.ranks import Ranks
from dsv4.distributed.transformer import RankTransformer
from dsv4.model.init import init_weights
from dsv4.model.transformer import Transformer
from dsv4.training.batch import Batch, Totals
from dsv4.training.loss import compute_loss
from dsv4.training.schedule import Phase
from dsv4.training.settings import LossWeights, Scale
from tests.distributed.whole_runs import everywhere_equal, same_losses, small_recipe

CASES = {
    "cut inside a block of both compressors": (75,),
    "cut at a border of documents": (32, 32),
    "cut at a multiple of all ratios": (64,),
    "cut one token into a document": (40, 3, 43),
    "short documents around a cut one": (9, 2, 70, 1, 18),
    "no finished block on the second rank": (30, 17, 3, 2, 2, 1, 5),
}


def _models(mesh: Mesh) -> tuple[Transformer, RankTransformer]:
    config = small_recipe().config(97)
    return init_weights(Transformer(config), 5), init_weights(RankTransformer(config, mesh), 5)


def one_step_agrees_in_values_and_gradients(folder: Path) -> None:
    mesh = Mesh(Scale(context=2))
    team = Ranks(mesh)
    weights = LossWeights(mtp=0.3, balance=0.5, indexer=1.0)  # a balance large enough to show in gradients
    for phase in Phase:
        for name, lengths in CASES.items():
            whole, mine = _models(mesh)
            generator = torch.Generator().manual_seed(len(lengths))
            tokens = torch.randint(0, 97, (sum(lengths),), generator=generator)
            batch = Batch(tokens, lengths, (torch.rand(len(tokens), generator=generator) < 0.8).float())
            team._least = 2 * reach(whole.config)
            (stretch,) = team.share([batch])
            totals = team.totals([stretch])
            expected_totals = Totals.of([batch])
            assert totals == expected_totals
            expected = compute_loss(whole, batch, phase=phase, weights=weights)
            team._model, team._optimizers = mine, (None, None)
            got = compute_loss(mine, stretch, phase=phase, weights=weights, totals=totals)
            team.complete(got, weights.balance, totals)
            expected.total.backward()
            got.total.backward()
            team.sum_gradients(mine.named_parameters())
            for part, value in expected.parts.items():
                added = got.parts[part].double()
                dist.all_reduce(added)
                assert abs(float(added) - float(value)) < 1e-5, (phase, name, part, float(added), float(value))
            for layer, load_E in expected.load.items():
                counts = got.load[layer].clone()
                dist.all_reduce(counts)
                assert torch.equal(counts, load_E)
            theirs = dict(whole.named_parameters())
            for part, p in mine.named_parameters():
                grad = theirs[part].grad
                assert (p.grad is None) == (grad is None), (phase, name, part)
                if grad is not None:
                    torch.testing.assert_close(p.grad, grad, atol=2e-5, rtol=1e-3, msg=f"{phase} {name}: {part}")


def the_rule_is_told(folder: Path) -> None:
    config = small_recipe().config(97)
    assert reach(config) == 15
    with pytest.raises(ValueError, match=r"each rank needs at least 15 tokens .* 29 tokens give 14"):
        ContextSplit.of((20, 9), 0, 2, reach(config))
    split = ContextSplit.of((20, 11), 1, 2, reach(config))
    assert split.cuts == (0, 16, 31)
    assert split.entries(4) == [4, 3]
    assert (split.open_at(1), split.open_at(2)) == (16, 0)


def split_documents_equal_one_process(folder: Path) -> None:
    run = same_losses(Scale(context=2), folder)
    for p in run.model.parameters():
        assert everywhere_equal(p)
