"""Where a model computes: names of devices, reasons for refusals, and every kind of model on a simulated card."""

import pytest
import torch

from dsv4.config.device import check_device
from dsv4.model.device import choose_device
from dsv4.model.layers import MODES
from dsv4.testing.card import simulated_card
from dsv4.testing.tiny import tiny_config, tiny_model
from dsv4.training.settings import RunSettings


def test_names_of_devices() -> None:
    for name in ("cpu", "cuda", "cuda:0", "cuda:12", "auto"):
        check_device(name)
    for name in ("gpu", "CUDA", "cuda:", "cuda:-1", "meta", "cpu:0", ""):
        with pytest.raises(ValueError, match=r"run\.device must be cpu, cuda, cuda:N or auto, got "):
            RunSettings(device=name)


def test_a_card_that_cannot_be_used_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert choose_device() == choose_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"run\.device 'cuda' cannot be used: torch .* is a build without CUDA"):
        choose_device("cuda", "run.device")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no card that its driver can use"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.raises(ValueError, match=r"device must be at most cuda:1: torch sees 2 card\(s\), got 'cuda:2'"):
        choose_device("cuda:2")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("mode", list(MODES))
def test_a_model_computes_the_same_on_a_card(mode: str) -> None:
    """On the simulated card, in plain torch: the same bits as the host's torch kernels."""
    config = tiny_config(num_hidden_layers=3, compress_ratios=(0, 4, 128, 0), n_routed_experts=4)
    model = tiny_model(config, numerics=MODES[mode], impl="torch")
    tokens = torch.randint(2, 97, (140,))
    with torch.inference_mode():
        wanted = model.logits(model.hidden(tokens, model.pack([131, 9])))
    with simulated_card() as card, torch.inference_mode():
        model.to(card)
        found = model.logits(model.hidden(tokens.to(card), model.pack([131, 9])))
        assert found.device == card == model.device
        assert torch.equal(found.cpu(), wanted)
