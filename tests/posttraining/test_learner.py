"""One update from any loss: normalised over the whole step, resumable bit for bit, safe from what is not finite."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsv4.model.layers import BF16
from dsv4.model.transformer import Transformer
from dsv4.posttraining.learner import LOAD, Learner
from dsv4.testing.tiny import tiny_config, tiny_model
from dsv4.training.batch import Batch, Totals
from dsv4.training.loss import compute_loss
from dsv4.training.settings import OptimizerSettings

ADAM = OptimizerSettings(kind="adamw")


def next_token(model: Transformer, batch: Batch, totals: Totals) -> tuple[Tensor, dict[str, Tensor]]:
    losses = compute_loss(model, batch, totals=totals)
    loads = {f"{LOAD}{layer}": load for layer, load in losses.load.items()}
    return losses.total, {"next": losses.parts["next"], **loads}


def documents(*lengths: int, seed: int = 0) -> list[Batch]:
    """One document a batch; the first half of each is not learned."""
    made = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(0, 97, (length,), generator=made) for length in lengths]
    return [Batch(t, (len(t),), (torch.arange(len(t)) >= len(t) // 2).float()) for t in tokens]


def together(batches: list[Batch]) -> Batch:
    return Batch(
        torch.cat([b.tokens_T for b in batches]),
        tuple(length for b in batches for length in b.lengths),
        torch.cat([b.learn_T for b in batches]),
    )


def same_weights(one: Transformer, other: Transformer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_token_counts_the_same_however_a_step_is_cut_into_micro_batches() -> None:
    """Divided by each micro-batch's own tokens, the short document's tokens would count nine times as much."""
    batches = documents(90, 10)
    one, other = Learner(tiny_model(), optimizer=ADAM), Learner(tiny_model(), optimizer=ADAM)
    a = one.step([together(batches)], next_token, lr=1e-3)
    b = other.step(batches, next_token, lr=1e-3)
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert a["learned"] == b["learned"] == 50

    def of_each(model: Transformer, batch: Batch, totals: Totals) -> tuple[Tensor, dict[str, Tensor]]:
        return next_token(model, batch, Totals.of([batch]))

    wrong = Learner(tiny_model(), optimizer=ADAM).step(batches, of_each, lr=1e-3)
    assert wrong["grad_norm"] != pytest.approx(a["grad_norm"], rel=0.05)


@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
def test_a_run_that_went_on_from_disk_is_the_run_that_never_stopped(numerics: str, tmp_path: Path) -> None:
    wide = {} if numerics == "fp32" else {"numerics": BF16}
    whole = Learner(tiny_model(**wide), optimizer=ADAM)
    for step in range(2):
        whole.step(documents(40, 30, seed=step), next_token, lr=1e-3)
    whole.save(tmp_path, {"asked": 7})
    for step in range(2, 4):
        whole.step(documents(40, 30, seed=step), next_token, lr=1e-3)
    again = Learner(tiny_model(seed=5, **wide), optimizer=ADAM)
    assert Learner(tiny_model(**wide)).load(tmp_path / "nothing") is None
    header = again.load(tmp_path)
    assert header is not None
    assert header["asked"] == 7
    assert again.updates == 2
    for step in range(2, 4):
        again.step(documents(40, 30, seed=step), next_token, lr=1e-3)
    assert same_weights(whole.model, again.model)
    one, other = whole.weights(tmp_path), again.weights(tmp_path)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["layers.1.attn.wq_a.weight"].dtype == torch.float32


def test_what_is_not_finite_changes_nothing() -> None:
    learner, before = Learner(tiny_model()), tiny_model()

    def broken(model: Transformer, batch: Batch, totals: Totals) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = next_token(model, batch, totals)
        return loss * float("nan"), parts

    record = learner.step(documents(20), broken, lr=1e-3)
    assert record["skipped"] == 1
    assert same_weights(learner.model, before)
    assert learner.step(documents(20), next_token, lr=1e-3)["skipped"] == 0
    assert all(p.isfinite().all() for p in learner.model.parameters())
    assert not same_weights(learner.model, before)


def test_quantisation_begins_at_its_step() -> None:
    config = tiny_config(quantized=True, expert_dtype="fp4")
    plain, late = Learner(tiny_model(config)), Learner(tiny_model(config), qat_from=1)
    for learner in (plain, late):
        learner.step(documents(40), next_token, lr=0.0)
    assert same_weights(plain.model, late.model)
    assert late.quantised
    a = plain.step(documents(40), next_token, lr=0.0)
    b = late.step(documents(40), next_token, lr=0.0)
    assert a["loss"] != b["loss"]
    assert same_weights(plain.model, late.model)  # what was cast for the step is as it was


def test_biases_of_routers_move_only_where_asked() -> None:
    still, moved, before = Learner(tiny_model()), Learner(tiny_model(), balance=True), tiny_model()
    for learner in (still, moved):
        learner.step(documents(60), next_token, lr=0.0)
    name = "layers.1.ffn.gate.bias"
    assert torch.equal(still.model.get_parameter(name), before.get_parameter(name))
    difference = (moved.model.get_parameter(name) - before.get_parameter(name)).abs()
    assert float(difference.max()) == pytest.approx(0.001, rel=1e-3)


def test_empty_steps_and_wrong_rates_are_named() -> None:
    learner = Learner(tiny_model())
    with pytest.raises(ValueError, match="at least one micro-batch"):
        learner.step([], next_token, lr=1e-3)
    with pytest.raises(ValueError, match="lr must be at least 0"):
        learner.step(documents(20), next_token, lr=-1.0)
