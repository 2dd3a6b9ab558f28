"""Losses against plain ones, every trainable tensor moves, phases train what they say (report 4.2, 4.3)."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model
from dsv4.training.batch import Batch, Totals
from dsv4.training.loss import compute_loss
from dsv4.training.param_groups import make_optimizers
from dsv4.training.schedule import Phase
from dsv4.training.settings import LossWeights
from tests.training.runs import numbers

LENGTHS = (150, 3, 1, 46)


def make_batch(lengths: tuple[int, ...] = LENGTHS, vocabulary: int = 97) -> Batch:
    tokens = sum(lengths)
    return Batch(torch.randint(0, vocabulary, (tokens,)), lengths, torch.rand(tokens))


@pytest.fixture
def model() -> Transformer:
    return tiny_model().train()


def gradients(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_targets_never_cross_documents() -> None:
    batch = Batch(torch.arange(9), (4, 1, 2, 2), torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9.0]))
    assert batch.weights(1).tolist() == [2, 3, 4, 0, 0, 7, 0, 9, 0]
    assert batch.weights(2).tolist() == [3, 4, 0, 0, 0, 0, 0, 0, 0]
    assert Totals.of([batch, batch]) == Totals(50, 14, 18)


@pytest.mark.parametrize(("lengths", "learn"), [((3, 2), 4), ((3, 1), 5), ((5, 0), 5), ((), 5)])
def test_sizes_that_do_not_fit_are_refused(lengths: tuple[int, ...], learn: int) -> None:
    with pytest.raises(ValueError, match=r"learn_T must be \[T\]|lengths must be positive and add up to 5"):
        Batch(torch.zeros(5, dtype=torch.int64), lengths, torch.ones(learn))


def test_parts_are_those_computed_document_by_document(model: Transformer) -> None:
    batch = make_batch()
    losses = compute_loss(model, batch, weights=LossWeights(0.3, 0.0, 0.0))
    sums, weights = [0.0, 0.0], [0.0, 0.0]
    for tokens, learn in zip(batch.tokens_T.split(LENGTHS), batch.learn_T.split(LENGTHS), strict=True):
        sequences = model.pack([len(tokens)])
        x = model.hidden(tokens, sequences)
        ahead = model.mtp_hidden(x, torch.roll(tokens, -1), sequences)
        for i, logits in enumerate((model.logits(x), model.mtp_logits(ahead))):
            at = i + 1
            if len(tokens) > at:
                loss = F.cross_entropy(logits[:-at], tokens[at:], reduction="none")
                sums[i] += (loss * learn[at:]).sum().item()
                weights[i] += learn[at:].sum().item()
    wanted = [s / w for s, w in zip(sums, weights, strict=True)]
    assert losses.parts["next"].item() == pytest.approx(wanted[0], abs=2e-5)
    assert losses.parts["mtp"].item() == pytest.approx(wanted[1], abs=2e-5)
    assert losses.total.item() == pytest.approx(wanted[0] + 0.3 * wanted[1], abs=2e-5)


def test_micro_batches_with_common_totals_add_up(model: Transformer) -> None:
    batch, cut = make_batch((60, 40, 30, 20)), 100
    parts = [
        Batch(batch.tokens_T[:cut], (60, 40), batch.learn_T[:cut]),
        Batch(batch.tokens_T[cut:], (30, 20), batch.learn_T[cut:]),
    ]
    whole = compute_loss(model, batch)
    whole.total.backward()
    wanted = gradients(model)
    model.zero_grad()
    losses = [compute_loss(model, part, totals=Totals.of(parts)) for part in parts]
    for loss in losses:
        loss.total.backward()
    # products of another height round differently, and a near tie of the router may fall differently
    for name, value in whole.parts.items():
        assert sum(float(loss.parts[name]) for loss in losses) == pytest.approx(float(value), rel=1e-3)
    for name, grad in gradients(model).items():
        assert (grad - wanted[name]).norm() < 0.01 * wanted[name].norm() + 1e-6, name


@pytest.mark.parametrize("phase", list(Phase))
def test_recomputing_blocks_changes_nothing(model: Transformer, phase: Phase) -> None:
    batch, found = make_batch(), []
    for recompute in (False, True):
        model.zero_grad()
        losses = compute_loss(model, batch, phase=phase, recompute=recompute)
        losses.total.backward()
        found.append((losses, gradients(model)))
    (one, grads), (other, others) = found
    assert numbers(one) == numbers(other)
    assert {k: v.tolist() for k, v in one.load.items()} == {k: v.tolist() for k, v in other.load.items()}
    assert grads.keys() == others.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, atol=1e-7, rtol=1e-5, msg=name)


def indexer(name: str) -> bool:
    return ".indexer." in name


@pytest.mark.parametrize(
    ("phase", "trained"),
    [
        (Phase.DENSE, lambda name: not indexer(name)),
        (Phase.WARMUP, indexer),
        (Phase.SPARSE, lambda name: True),
    ],
)
def test_every_tensor_the_phase_trains_gets_a_gradient_and_moves(
    model: Transformer, phase: Phase, trained: Callable[[str], bool]
) -> None:
    # long enough for a compressed entry of 128 tokens, and every expert must have got a token
    batch = make_batch((400, 200))
    optimizers = make_optimizers(model.config, model.named_parameters(), lr=1e-3)
    losses = compute_loss(model, batch, phase=phase)
    losses.total.backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        moves = p.requires_grad and trained(name)
        assert (p.grad is not None and float(p.grad.abs().max()) > 0) == moves, name
    optimizers.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (not (p.requires_grad and trained(name))), name


def test_warm_up_leaves_the_model_as_it_was(model: Transformer) -> None:
    asking = {name: p.requires_grad for name, p in model.named_parameters()}
    batch = make_batch()
    losses = compute_loss(model, batch, phase=Phase.WARMUP)
    dense = compute_loss(model, batch, phase=Phase.DENSE)
    assert asking == {name: p.requires_grad for name, p in model.named_parameters()}
    torch.testing.assert_close(losses.parts["next"], dense.parts["next"], atol=1e-6, rtol=0)
    torch.testing.assert_close(losses.total.detach(), losses.parts["indexer"])


def test_the_indexer_learns_from_its_own_loss_alone(model: Transformer) -> None:
    batch, found = make_batch(), []
    for weight in (0.0, 1.0):
        model.zero_grad()
        compute_loss(model, batch, weights=LossWeights(indexer=weight)).total.backward()
        found.append(gradients(model))
    for name, grad in found[0].items():
        if indexer(name):
            assert float(grad.abs().max()) == 0
        else:
            assert torch.equal(found[1][name], grad), name


def test_a_model_without_prediction_block(model: Transformer) -> None:
    plain = tiny_model(tiny_config(num_nextn_predict_layers=0, compress_ratios=(0, 4, 128, 4)))
    assert "mtp" not in compute_loss(plain, make_batch()).parts


def test_a_prediction_block_of_weight_0_rests(model: Transformer) -> None:
    losses = compute_loss(model, make_batch(), weights=LossWeights(mtp=0.0))
    losses.total.backward()
    assert "mtp" not in losses.parts
    assert all(p.grad is None for p in model.mtp.parameters())


def test_nothing_to_learn_is_no_loss(model: Transformer) -> None:
    batch = Batch(torch.zeros(20, dtype=torch.int64), (20,), torch.zeros(20))
    losses = compute_loss(model, batch, weights=LossWeights(balance=0, indexer=0))
    assert losses.total.item() == 0
    losses.total.backward()
    assert all(bool(grad.isfinite().all()) for grad in gradients(model).values())


def test_a_tiny_model_learns_its_batch_by_heart() -> None:
    model = tiny_model().train()
    optimizers = make_optimizers(model.config, model.named_parameters(), lr=5e-3)
    batch = Batch(torch.randint(0, 97, (96,)), (64, 32), torch.ones(96))
    first = last = 0.0
    for step in range(15):
        losses = compute_loss(model, batch)
        optimizers.zero_grad()
        losses.total.backward()
        optimizers.step()
        last = float(losses.parts["next"])
        first = first or last
        assert step == 0 or last < 2 * first
    assert last < 0.6 * first
