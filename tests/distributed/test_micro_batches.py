"""How a rank's documents are cut and joined so that all ranks make equally many forward passes."""

import pytest
import torch

from dsv4.distributed.context_parallel import ContextSplit
from dsv4.distributed.micro_batches import SplitBatch, cut_batches, join_batches
from dsv4.training.batch import Batch
from dsv4.training.recipe import Recipe
from dsv4.training.settings import Scale
from tests.training.runs import raw_recipe


def batch(*lengths: int) -> Batch:
    tokens = torch.arange(sum(lengths))
    return Batch(tokens, lengths, torch.ones(len(tokens)))


def test_the_largest_is_cut_between_documents() -> None:
    found = cut_batches([batch(5, 6, 7), batch(4, 4)], 4)
    assert [b.lengths for b in found] == [(5,), (6,), (7,), (4, 4)]
    assert torch.equal(torch.cat([b.tokens_T for b in found[:3]]), torch.arange(18))
    assert cut_batches(found, 4) == found
    with pytest.raises(ValueError, match=r"other ranks have 3 micro-batches .* 2 of this rank cannot be cut"):
        cut_batches([batch(9), batch(9)], 3)
    with pytest.raises(ValueError, match="parts of at least 8 tokens"):
        cut_batches([batch(6, 6)], 2, least=8)


def test_short_ones_are_joined() -> None:
    assert [b.lengths for b in join_batches([batch(3), batch(9), batch(9), batch(2)], 8)] == [(3, 9), (9, 2)]
    assert [b.lengths for b in join_batches([batch(3)], 8)] == [(3,)]


def test_a_stretch_knows_the_tokens_that_follow() -> None:
    whole = batch(7, 5)
    stretches = [SplitBatch.of(whole, ContextSplit.of(whole.lengths, rank, 2, 3)) for rank in range(2)]
    assert stretches[0].tokens_T.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert stretches[1].tokens_T.tolist() == [6, 7, 8, 9, 10, 11, 0, 1]
    for ahead in (1, 2):
        parts = [s.weights(ahead)[: -SplitBatch.AHEAD] for s in stretches]
        assert torch.equal(torch.cat(parts), whole.weights(ahead))
        assert not any(s.weights(ahead)[-SplitBatch.AHEAD :].any() for s in stretches)


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        ({"fsdp": 0}, r"scale\.fsdp must be at least 1, got 0"),
        ({"expert": 3}, r"scale\.expert must divide model\.n_routed_experts 4, got 3"),
        ({"tensor": 2}, "tensor"),
        ({"timeout": 0.0}, r"scale\.timeout must be positive"),
    ],
)
def test_a_recipe_says_what_is_wrong_with_its_scale(scale: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Recipe.from_dict(raw_recipe(scale=scale))


def test_the_product_is_the_number_of_processes() -> None:
    Scale(data=2, fsdp=3, context=4, expert=5).check(120)
    with pytest.raises(
        ValueError, match="data 1 x fsdp 2 x context 1 x expert 3 needs 6 processes, but 4 were started"
    ):
        Scale(fsdp=2, expert=3).check(4)
