"""Every parameter has exactly one mover, and stored-together matrices are cut apart (report 2.4)."""

import pytest
import torch

from dsv4.config import ModelConfig
from dsv4.parameters import Mover, parameter_table
from dsv4.testing.tiny import tiny_config, tiny_model
from dsv4.training.param_groups import make_optimizers, place, table
from tests.conftest import ROOT

FILES = ["dsv4/configs/flash.json", "dsv4/configs/pro.json"]


def test_every_parameter_is_placed_once() -> None:
    model = tiny_model()
    named = dict(model.named_parameters())
    placed = place(model.config, named)
    assert [p.name for p in placed] == list(named)
    for p in placed:
        assert (p.mover is Mover.BALANCE) == (not named[p.name].requires_grad)
        assert not p.rows or sum(p.rows) == p.shape[0]


@pytest.mark.parametrize("file", FILES)
def test_nearly_everything_of_the_released_models_is_moved_by_muon(file: str) -> None:
    config = ModelConfig.from_file(ROOT / file)
    placed = list(parameter_table(config).values())
    numbers = {mover: sum(p.numbers for p in placed if p.mover is mover) for mover in Mover}
    assert numbers[Mover.ADAMW] < 0.005 * numbers[Mover.MUON]
    embedding = 2 * config.vocab_size * config.hidden_size
    assert embedding < numbers[Mover.ADAMW] < 1.02 * embedding
    assert all(not p.rows or sum(p.rows) == p.shape[0] for p in placed)


def test_the_optimisers_hold_each_trainable_parameter_once() -> None:
    model = tiny_model()
    optimizers = make_optimizers(model.config, model.named_parameters())
    held = [id(p) for o in (optimizers.muon, optimizers.adamw) for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "mover", "decay", "rows"),
    [
        ("embed.weight", Mover.ADAMW, True, ()),
        ("head.weight", Mover.ADAMW, True, ()),
        ("layers.1.attn.kv_norm.weight", Mover.ADAMW, True, ()),
        ("mtp.0.enorm.weight", Mover.ADAMW, True, ()),
        ("layers.0.hc_ffn_base", Mover.ADAMW, False, ()),
        ("hc_head_scale", Mover.ADAMW, False, ()),
        ("layers.1.attn.attn_sink", Mover.ADAMW, False, ()),
        ("layers.1.attn.compressor.ape", Mover.ADAMW, False, ()),
        ("layers.1.ffn.gate.bias", Mover.BALANCE, False, ()),
        ("layers.1.ffn.gate.weight", Mover.MUON, True, ()),
        ("layers.0.hc_attn_fn", Mover.MUON, True, (4, 4, 16)),
        ("hc_head_fn", Mover.MUON, True, ()),
        ("layers.1.attn.wq_b.weight", Mover.MUON, True, ()),
        ("layers.1.attn.wo_a.weight", Mover.MUON, True, (32, 32)),
        ("layers.1.attn.compressor.wgate.weight", Mover.MUON, True, (32, 32)),
        ("layers.1.attn.indexer.compressor.wkv.weight", Mover.MUON, True, (32, 32)),
        ("layers.2.attn.compressor.wkv.weight", Mover.MUON, True, ()),
        ("layers.1.attn.indexer.weights_proj.weight", Mover.MUON, True, ()),
        ("layers.3.ffn.experts.5.w3.weight", Mover.MUON, True, ()),
        ("mtp.0.h_proj.weight", Mover.MUON, True, ()),
    ],
)
def test_places(name: str, mover: Mover, decay: bool, rows: tuple[int, ...]) -> None:
    model = tiny_model()
    (found,) = place(model.config, [name])
    assert name in dict(model.named_parameters())
    assert (found.mover, found.decay, found.rows) == (mover, decay, rows)


def test_strays_and_repeats_are_named() -> None:
    config = tiny_config()
    with pytest.raises(ValueError, match=r"no optimiser is known for the parameter 'layers.0.what'"):
        place(config, ["layers.0.what"])
    twice = [("hc_head_fn", torch.nn.Parameter(torch.zeros(4, 8)))] * 2
    with pytest.raises(ValueError, match="the parameter 'hc_head_fn' came twice"):
        make_optimizers(config, twice)


def test_pieces_follow_the_config() -> None:
    assert parameter_table(tiny_config(o_groups=1))["layers.0.attn.wo_a.weight"].rows == ()
    assert parameter_table(tiny_config(hc_mult=2))["layers.0.hc_ffn_fn"].rows == (2, 2, 4)


def test_the_table_accounts_for_every_number() -> None:
    model = tiny_model()
    lines = table(model).splitlines()
    total = sum(int(line.split()[-1].replace(",", "")) for line in lines[1:])
    assert total == sum(p.numel() for p in model.parameters())
    assert any(line.split()[:3] == ["layers.*.ffn.experts.*.w1.weight", "Muon", "yes"] for line in lines)
    assert max(map(len, lines)) <= 120


def test_one_learning_rate_for_both_and_state_round_trip() -> None:
    model = tiny_model()
    optimizers = make_optimizers(model.config, model.named_parameters())
    optimizers.set_lr(0.0123)
    groups = [*optimizers.muon.param_groups, *optimizers.adamw.param_groups]
    assert {g["lr"] for g in groups} == {0.0123}
    assert {(g["betas"], g["eps"]) for g in optimizers.adamw.param_groups} == {((0.9, 0.95), 1e-20)}
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    optimizers.step()
    other = make_optimizers(model.config, model.named_parameters())
    other.load_state_dict(optimizers.state_dict())
    for one, two in ((optimizers.muon, other.muon), (optimizers.adamw, other.adamw)):
        for p, state in one.state.items():
            for key, value in state.items():
                assert torch.equal(two.state[p][key], value)
    optimizers.zero_grad()
    assert all(p.grad is None for p in model.parameters())
