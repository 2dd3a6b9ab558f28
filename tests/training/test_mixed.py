"""bfloat16 compute with fp32 masters: small updates survive, gradients add in fp32, QAT casts the masters."""

import pytest
import torch

from dsv4.model.layers import BF16
from dsv4.testing.tiny import tiny_config, tiny_model
from dsv4.training.batch import Batch
from dsv4.training.loss import compute_loss
from dsv4.training.mixed import Masters
from dsv4.training.param_groups import make_optimizers
from dsv4.training.qat import FakeQuantised


def make_batch() -> Batch:
    return Batch(torch.randint(0, 97, (60,)), (40, 20), torch.ones(60))


def test_updates_below_bfloat16s_step_add_up() -> None:
    model = tiny_model(numerics=BF16).train()
    masters = Masters(model)
    named = dict(masters.named_parameters())
    name = "layers.1.attn.wq_a.weight"
    optimizers = make_optimizers(model.config, masters.named_parameters(), lr=2e-6)
    start, compute = named[name].detach().clone(), model.get_parameter(name).detach().clone()
    batch = make_batch()
    for _ in range(4):
        optimizers.zero_grad()
        compute_loss(model, batch).total.backward()
        masters.collect()
        optimizers.step()
        masters.publish()
    moved = (named[name].detach() - start).abs()
    assert 0 < float(moved.max()) < 2e-5
    assert torch.equal(model.get_parameter(name), named[name].bfloat16())
    assert float((model.get_parameter(name) == compute).float().mean()) > 0.9  # too small to be seen in bfloat16


def test_every_parameter_has_one_master_and_fp32_ones_are_their_own() -> None:
    model = tiny_model(numerics=BF16)
    masters = dict(Masters(model).named_parameters())
    assert list(masters) == [name for name, _ in model.named_parameters()]
    for name, p in model.named_parameters():
        assert masters[name].dtype == torch.float32
        assert (masters[name] is p) == (p.dtype == torch.float32)
        assert masters[name].requires_grad == p.requires_grad
    assert any(p.dtype == torch.bfloat16 for p in model.parameters())


def test_gradients_of_micro_batches_add_in_fp32() -> None:
    model = tiny_model(numerics=BF16).train()
    masters = Masters(model)
    total: dict[str, torch.Tensor] = {}
    for _ in range(3):
        compute_loss(model, make_batch()).total.backward()
        for name, p in model.named_parameters():
            if p.grad is not None and p.dtype == torch.bfloat16:
                total[name] = total.get(name, 0) + p.grad.float()
        masters.collect()
    named = dict(masters.named_parameters())
    for name, p in model.named_parameters():
        if name in total:
            assert p.grad is None
            assert torch.equal(named[name].grad, total[name])


def test_gradients_are_near_those_of_fp32() -> None:
    wide, batch = tiny_model().train(), make_batch()
    narrow = tiny_model(numerics=BF16).train()
    masters = Masters(narrow)
    compute_loss(wide, batch).total.backward()
    losses = compute_loss(narrow, batch)
    losses.total.backward()
    masters.collect()
    named = dict(masters.named_parameters())
    for name in ("layers.0.attn.wq_b.weight", "mtp.0.h_proj.weight", "embed.weight", "norm.weight"):
        one, other = wide.get_parameter(name).grad.flatten(), named[name].grad.flatten()
        assert float(torch.cosine_similarity(one, other, dim=0)) > 0.95, name


def test_masters_survive_a_checkpoint_and_quantisation_starts_from_them() -> None:
    config = tiny_config(quantized=True, expert_dtype="fp4")
    model, other = tiny_model(config, numerics=BF16), tiny_model(config, seed=5, numerics=BF16)
    masters = Masters(model)
    with torch.no_grad():
        for _, master in masters.named_parameters():
            master.mul_(1 + 1e-4)
    again = Masters(other)
    again.load_state_dict(masters.state_dict())
    for (_, one), (_, two) in zip(masters.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(KeyError):
        again.load_state_dict({})
    exact = tiny_model(config)
    exact.load_state_dict(masters.state_dict(), strict=False)
    with FakeQuantised(other, masters=dict(again.named_parameters())), FakeQuantised(exact):
        for (name, one), (_, two) in zip(other.named_parameters(), exact.named_parameters(), strict=True):
            assert torch.equal(one.float(), two), name  # FP8 and FP4 values are exact in bfloat16
