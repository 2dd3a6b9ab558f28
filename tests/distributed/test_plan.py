"""The arithmetic of a plan against the model's own parameters, and against numbers worked out by hand."""

import pytest
import torch

from dsv4.config import ModelConfig
from dsv4.distributed import plan as planning
from dsv4.distributed.fsdp import stays_whole
from dsv4.distributed.plan import plan, table, weights
from dsv4.model import accounting
from dsv4.model.layers import BF16
from dsv4.model.transformer import Transformer
from dsv4.parameters import is_expert
from dsv4.training.settings import Scale
from tests.conftest import ROOT
from tests.training.runs import recipe

SHAPE = {"length": 4096, "batch": 1 << 22}


@pytest.fixture
def flash() -> ModelConfig:
    return ModelConfig.from_file(ROOT / "dsv4" / "configs" / "flash.json")


def test_every_number_is_held_as_the_model_holds_it() -> None:
    config = recipe().config(97)
    with torch.device("meta"):
        model = Transformer(config, BF16)
    counted = {"cut16": 0, "cut32": 0, "whole32": 0, "experts": 0}
    for name, p in model.named_parameters():
        if is_expert(name):
            counted["experts"] += p.numel()
        elif stays_whole(name, p, model):
            counted["whole32"] += p.numel()
            assert p.dtype == torch.float32, name
        else:
            counted["cut16" if p.dtype == torch.bfloat16 else "cut32"] += p.numel()
    w = weights(config)
    assert counted == {"cut16": w.cut16, "cut32": w.cut32, "whole32": w.whole32, "experts": w.experts}
    assert w.vocabulary == model.embed.weight.numel() + model.head.weight.numel()


def test_released_models_add_up(flash: ModelConfig) -> None:
    p = accounting.parameters(flash)
    assert weights(flash).total == p.total + p.mtp
    assert weights(flash).experts == 44 * 256 * 3 * 4096 * 2048


def test_one_rank_sends_nothing(flash: ModelConfig) -> None:
    alone = plan(flash, Scale(), **SHAPE)
    assert alone.traffic.total == 0
    w = weights(flash)
    assert alone.memory.weights == 2 * (w.cut16 + w.experts) + 4 * (w.cut32 + w.whole32)
    assert alone.memory.gradients == 4 * w.total
    assert alone.batch == SHAPE["batch"]
    assert alone.micro == 1024


def test_what_each_axis_divides(flash: ModelConfig) -> None:
    w, alone = weights(flash), plan(flash, Scale(), **SHAPE).memory
    split = plan(flash, Scale(expert=64), **SHAPE).memory
    assert alone.weights - split.weights == pytest.approx(2 * w.experts * 63 / 64)
    cut = plan(flash, Scale(fsdp=8), **SHAPE).memory
    assert alone.weights - cut.weights == pytest.approx((2 * w.cut16 + 4 * w.cut32) * 7 / 8)
    # whole-matrix ownership: copies of experts share the momentum
    assert plan(flash, Scale(data=4, expert=64), **SHAPE).memory.optimizer < split.optimizer
    long = plan(flash, Scale(context=4), length=65536, batch=65536)
    assert long.tokens == 16384
    assert long.micro == 1


def test_traffic_by_hand(flash: ModelConfig) -> None:
    w = weights(flash)
    cut = plan(flash, Scale(fsdp=2), length=4096, batch=8192).traffic
    assert cut.shards == 3 * (2 * w.cut16 + 4 * w.cut32) / 2
    split = plan(flash, Scale(expert=2), length=4096, batch=8192).traffic
    # 4,096 tokens, 6 experts each, 44 layers, half of them elsewhere; 2 bytes there, 4 back; three passes
    assert split.experts == 3 * 4096 * 6 * 44 / 2 * 4096 * 6
    assert split.shards == split.context == 0
    halves = plan(flash, Scale(context=2), length=4096, batch=4096).traffic
    window = 44 * 127 * 512 * 2
    tails = 21 * 7 * 4 * (512 + 128) * 4 + 20 * 127 * 2 * 512 * 4
    entries = 21 * 512 * (512 + 128) * 2 + 20 * 16 * 512 * 2
    assert halves.context == 3 * (window + tails + entries)


def test_what_cannot_be_is_refused(flash: ModelConfig) -> None:
    with pytest.raises(ValueError, match=r"scale\.expert must divide n_routed_experts 256, got 3"):
        plan(flash, Scale(expert=3), **SHAPE)
    with pytest.raises(ValueError, match="length must be at least 8128"):
        plan(flash, Scale(context=64), **SHAPE)


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str], flash: ModelConfig) -> None:
    file = str(ROOT / "dsv4" / "configs" / "flash.json")
    planning.main([file, "--expert", "64", "--fsdp", "2", "--context", "16", "--length", "65536"])
    told = capsys.readouterr().out
    assert told.startswith("2,048 ranks: data 1 x fsdp 2 x context 16 x expert 64")
    scale = Scale(fsdp=2, context=16, expert=64)
    assert table(flash, scale, plan(flash, scale, length=65536, batch=1 << 22)) == told.rstrip("\n")
