"""Training against the released formats: values equal the export, gradients pass, nothing stays behind (5.2.1)."""

from pathlib import Path

import pytest
import torch

from dsv4.checkpoint import RELEASE, CheckpointReader, load_into, save_checkpoint, state_for
from dsv4.checkpoint.format import CheckpointError
from dsv4.kernels import quant
from dsv4.model.layers import FP32, Numerics, straight_through
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_config, tiny_model
from dsv4.training.batch import Batch
from dsv4.training.loss import compute_loss
from dsv4.training.qat import FakeQuantised


@pytest.fixture
def model() -> Transformer:
    return tiny_model(tiny_config(quantized=True, expert_dtype="fp4")).train()


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.randint(0, 97, (180,)), (140, 40), torch.ones(180))


def weights(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_exported_weights_equal_the_fake_quantised_ones(model: Transformer, tmp_path: Path) -> None:
    masters = weights(model)
    with FakeQuantised(model):
        inside = weights(model)
    assert all(torch.equal(p, masters[name]) for name, p in model.named_parameters())
    assert sum(not torch.equal(inside[name], masters[name]) for name in masters) > 0.7 * len(masters)
    # the masters are what is saved, and what a reader dequantises is what the loss saw
    save_checkpoint(tmp_path / "out", model.config, model.state_dict(), RELEASE)
    read = dict(state_for(model.config, CheckpointReader(tmp_path / "out"), "fp32"))
    for name, value in inside.items():
        assert torch.equal(read[name], value), name


def test_values_lie_on_the_formats_grid(model: Transformer) -> None:
    with FakeQuantised(model):
        inside = weights(model)
    expert = inside["layers.1.ffn.experts.3.w2.weight"]
    assert torch.equal(quant.dequantize_fp4_weight(*quant.quantize_fp4_weight(expert)), expert)
    assert expert.unflatten(1, (-1, 32)).abs().unique(dim=-1).shape[-1] < 1000
    dense = inside["layers.1.attn.wq_b.weight"]
    assert torch.equal(quant.dequantize_fp8_weight(*quant.quantize_fp8_weight(dense)), dense)
    assert torch.equal(inside["embed.weight"].bfloat16().float(), inside["embed.weight"])
    assert torch.equal(inside["layers.1.attn.attn_sink"], model.layers[1].attn.attn_sink)


def test_fp4_to_fp8_loses_nothing(model: Transformer) -> None:
    for name, p in model.named_parameters():
        if ".experts." in name:
            packed = quant.quantize_fp4_weight(p.detach())
            wide = quant.dequantize_fp8_weight(*quant.fp4_to_fp8_weight(*packed))
            assert torch.equal(wide, quant.dequantize_fp4_weight(*packed))


def test_gradients_are_taken_at_the_cast_values_and_reach_the_masters(model: Transformer, batch: Batch) -> None:
    with FakeQuantised(model, cache=False, activations=False):
        compute_loss(model, batch).total.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    twin = tiny_model(model.config)
    with FakeQuantised(model):
        twin.load_state_dict(model.state_dict())
    compute_loss(twin, batch).total.backward()
    for name, p in twin.named_parameters():
        if p.requires_grad:
            assert torch.equal(got[name], p.grad), name


def test_everything_simulated_still_reaches_every_parameter(model: Transformer, batch: Batch) -> None:
    with FakeQuantised(model):
        quantised = compute_loss(model, batch)
        quantised.total.backward()
    for name, p in model.named_parameters():
        if p.requires_grad and "experts" not in name:
            assert p.grad is not None
            assert bool(p.grad.isfinite().all()), name
            assert float(p.grad.abs().max()) > 0, name
    plain = compute_loss(model, batch)
    difference = abs(float(plain.parts["next"] - quantised.parts["next"]))
    assert 0 < difference < 0.2


def test_the_forward_pass_is_the_released_arithmetic(model: Transformer, batch: Batch, tmp_path: Path) -> None:
    """A folder in the released layout, multiplied as the release does, gives the same but for rounding at the edges."""
    save_checkpoint(tmp_path / "out", model.config, model.state_dict(), RELEASE)
    served = Transformer(model.config, Numerics(torch.float32, simulate=True), impl="torch")
    load_into(served, model.config, CheckpointReader(tmp_path / "out"), "release")
    for p in served.parameters():
        if p.dtype == torch.bfloat16:
            p.data = p.data.float()
    assert served.layers[1].ffn.experts[0].w1.weight.dtype == torch.int8
    tokens, sequences = batch.tokens_T[:30], model.pack([30])  # few enough for the indexer to choose them all
    with torch.no_grad():
        theirs = served.logits(served.hidden(tokens, sequences))
        plain = model.logits(model.hidden(tokens, sequences))
    with FakeQuantised(model):
        ours = model.logits(model.hidden(tokens, sequences)).detach()
    assert (ours - theirs).abs().mean() < 0.05 * (ours - plain).abs().mean()


def test_nothing_stays_behind_even_after_an_error(model: Transformer, batch: Batch) -> None:
    with torch.no_grad():
        before = model.hidden(batch.tokens_T, model.pack([180]))
    fake = FakeQuantised(model)
    with pytest.raises(KeyError, match="inside"), fake:
        raise KeyError("inside")
    with fake, pytest.raises(RuntimeError, match="entered already"), fake:
        pass
    with torch.no_grad():
        assert torch.equal(model.hidden(batch.tokens_T, model.pack([180])), before)
    model.layers[1].ffn.experts[0].w1.weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"layers.1.ffn.experts.0.w1.weight.*NaN"), fake:
        pass
    assert model.layers[1].numerics == FP32
    assert model.layers[1].attn.wq_a.cast is None


def test_an_expert_that_moved_alone_is_noticed(model: Transformer, batch: Batch) -> None:
    """Weights cast anew may lie where the first expert's lay before, and the others elsewhere."""
    tokens, sequences = batch.tokens_T, model.pack([180])
    with torch.no_grad():
        before = model.hidden(tokens, sequences)
        ffn = model.layers[1].ffn
        for linear in (ffn.experts[5].w2, ffn.experts[3].w3, ffn.shared_experts.w1):
            old, linear.weight.data = linear.weight.data, 2 * linear.weight.data
            after = model.hidden(tokens, sequences)
            twin = tiny_model(model.config)
            twin.load_state_dict(model.state_dict())
            assert torch.equal(after, twin.hidden(tokens, sequences))
            assert not torch.equal(after, before)
            linear.weight.data = old
        assert torch.equal(model.hidden(tokens, sequences), before)


def test_straight_through_is_the_cast_forward_and_the_identity_backward() -> None:
    x = torch.randn(4, 64, requires_grad=True)
    y = straight_through(quant.simulate_fp4, x)
    assert torch.equal(y, quant.simulate_fp4(x))
    (grad,) = torch.autograd.grad((y * torch.arange(64)).sum(), x)
    assert torch.equal(grad, torch.arange(64.0).expand(4, -1))
