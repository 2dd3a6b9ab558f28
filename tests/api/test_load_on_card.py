"""`dsv4.load(device=)` and the plan of a card's memory, on a simulated card."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dsv4
from dsv4.api import loading
from dsv4.checkpoint import LAYOUTS, save_checkpoint
from dsv4.cli.engine_flags import EngineFlags
from dsv4.config import ModelConfig
from dsv4.generation import SamplingParams
from dsv4.model import device as devices
from dsv4.planning.files import ModelFiles
from dsv4.planning.plan import EngineRequest, make_plan
from dsv4.planning.text import long_lines, short_lines
from dsv4.testing.card import simulated_card
from dsv4.testing.tiny import tiny_config, tiny_model
from tests.conftest import ROOT

GIB = 2**30
FLASH = ModelFiles.of_config("flash", ModelConfig.from_file(ROOT / "dsv4" / "configs" / "flash.json"))
ON_CARD = EngineRequest(sequences=1, device="cuda:0")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A simulated card of 1 GiB in place of the one that "cuda" means."""
    with simulated_card() as place:
        for module in (loading, devices):
            monkeypatch.setattr(module, "choose_device", lambda *names: place)
            monkeypatch.setattr(module, "free_card_memory", lambda device: GIB)
        yield place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tiny_config(
        num_hidden_layers=3, compress_ratios=(0, 4, 128, 0), n_routed_experts=4, quantized=True, expert_dtype="fp4"
    )
    save_checkpoint(tmp_path / "tiny", config, tiny_model(config).state_dict(), LAYOUTS["release"])
    return tmp_path / "tiny"


def answer(model: dsv4.LocalModel) -> list[int]:
    events = model.events([5, 6, 7, 8], SamplingParams(max_tokens=3, temperature=0))
    return [event.token for event in events if event.token is not None]


def test_a_folder_is_loaded_onto_a_card(folder: Path, card: torch.device) -> None:
    told: list[str] = []
    options = {"mode": "release", "context_length": 256, "sequences": 2, "memory": "50%"}
    model = dsv4.load(folder, device="cuda", say=told.append, **options)
    assert {tensor.device for tensor in model.model.state_dict().values()} == {card}
    assert model.engine.cache.store.streams_SRHD.device == card
    assert "kernels: plain torch on meta; steps: op by op (the model is on meta" in model.memory_text()
    assert "of 1.00 GiB free on meta: weights" in "\n".join(told)
    assert model.plan is not None
    assert not model.plan.streamed
    assert answer(model) == answer(dsv4.load(folder, fused=False, **options))
    assert model.logits([5, 6, 7]).device == card


def test_what_a_card_cannot_do_is_refused(folder: Path, card: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="native kernels read experts from disk, and they run on the CPU"):
        dsv4.load(folder, "release", device="cuda", expert_memory="1MiB")
    with pytest.raises(ValueError, match="steps cannot be fused: the model is on meta"):
        dsv4.load(folder, "release", device="cuda", fused=True, context_length=256)
    monkeypatch.setattr(loading, "free_card_memory", lambda device: 1 << 20)
    with pytest.raises(ValueError, match=r"tiny does not fit: .* 1\.0 MiB are free on meta"):
        dsv4.load(folder, "release", device="cuda", context_length=256)


def test_shares_of_memory_are_those_of_the_card(card: torch.device) -> None:
    flags = EngineFlags(device="cuda", memory="25%")
    assert flags.options()["memory"] == GIB // 4
    assert flags.request().device == str(card)
    assert EngineFlags().request().device == "cpu"


def test_a_plan_puts_everything_on_the_card() -> None:
    with pytest.raises(ValueError, match=r"flash does not fit: .* and 80\.00 GiB are free on cuda:0"):
        make_plan(FLASH, ON_CARD, 80 * GIB)
    plan = make_plan(FLASH, ON_CARD, 200 * GIB)
    assert plan.weights.mapped == plan.weights.experts_mapped == plan.disk_per_token == 0
    assert plan.fixed == plan.peak <= plan.free
    assert plan.expert_memory is None
    assert "of 200.00 GiB free on cuda:0" in short_lines(plan, None)[1]
    assert not [line for line in long_lines(plan, None) if line.startswith("speed")]
    with pytest.raises(ValueError, match="leave it out on a card"):
        make_plan(FLASH, replace(ON_CARD, expert_memory=4 * GIB), 200 * GIB)
    with pytest.raises(ValueError, match="does not fit"):
        make_plan(FLASH, replace(ON_CARD, sequences=64, memory=100 * GIB), 200 * GIB)
    with pytest.raises(ValueError, match="free: the memory of cuda:0 must be given"):
        make_plan(FLASH, ON_CARD)
