"""Routed experts as tables: the same model as with a module for each, and modules as soon as one is asked for."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsv4.checkpoint import RELEASE, CheckpointReader, load_into, save_checkpoint
from dsv4.checkpoint import loader as loader_module
from dsv4.config import Mode, ModelConfig
from dsv4.engine import Engine
from dsv4.generation import SamplingParams, collect
from dsv4.model import expert as expert_module
from dsv4.model.expert import StoredExperts
from dsv4.model.layers import MODES, Numerics, walk
from dsv4.model.transformer import Transformer
from dsv4.testing.tiny import tiny_model

TOKENS = torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "model"
    model = tiny_model()
    save_checkpoint(path, model.config, model.state_dict(), RELEASE)
    return path


def loaded(folder: Path, mode: Mode = "release", *, stored: bool = True) -> Transformer:
    config = tiny_model().config
    with torch.device("meta"):
        model = Transformer(config, MODES[mode], stored_experts=stored)
    load_into(model, config, CheckpointReader(folder), mode)
    return model.eval()


def folded(model: nn.Module) -> list[bool]:
    return [module.folded for _, module in walk(model) if isinstance(module, StoredExperts)]


@torch.inference_mode()
def logits(model: Transformer) -> Tensor:
    return model.logits(model.hidden(TOKENS, model.pack([len(TOKENS)])))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("mode", ["fp32", "bf16", "release"])
def test_tables_compute_what_modules_compute(
    folder: Path, mode: Mode, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # large folders are not looked at whole: their tables are addresses
        monkeypatch.setattr(loader_module, "is_small", lambda reader: False)
    model = loaded(folder, mode)
    before = logits(model)
    assert all(folded(model))
    assert torch.equal(before, logits(loaded(folder, mode, stored=False)))
    assert len(list(model.layers[1].get_submodule("ffn.experts").children())) == model.config.n_routed_experts
    assert folded(model).count(False) == 1
    assert torch.equal(before, logits(model))


def test_the_state_is_that_of_modules(folder: Path) -> None:
    model, modules = loaded(folder), loaded(folder, stored=False)
    state, expected = model.state_dict(), modules.state_dict()
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name].view(torch.uint8), value.view(torch.uint8)), name
    assert [name for name, _ in loaded(folder).named_parameters()] == [name for name, _ in modules.named_parameters()]
    assert [name for name, _ in loaded(folder).named_modules()] == [
        name for name, _ in loaded(folder, stored=False).named_modules()
    ]


ASKS = {
    "an index": lambda model: model.layers[0].ffn.experts[3].w1.weight,
    "a name": lambda model: model.get_submodule("layers.0.ffn.experts.3"),
    "all parameters": lambda model: list(model.layers[0].parameters()),
    "apply": lambda model: model.layers[0].apply(lambda module: None),
    "a copy": lambda model: copy.deepcopy(model.layers[0]),
    "a move": lambda model: model.layers[0].to("cpu"),
}


@pytest.mark.parametrize("ask", ASKS)
def test_modules_are_there_when_something_asks(folder: Path, ask: str) -> None:
    model = loaded(folder)
    ASKS[ask](model)
    assert folded(model)[:2] == [False, True]
    assert all(not expert.training for expert in model.layers[0].get_submodule("ffn.experts").modules())


def test_a_second_thread_waits_until_all_modules_are_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = loaded(folder).layers[0].get_submodule("ffn.experts")
    begun, go_on = threading.Event(), threading.Event()

    class Slow(expert_module.Expert):
        def __init__(self, config: ModelConfig, numerics: Numerics) -> None:
            begun.set()
            go_on.wait(60)
            super().__init__(config, numerics)

    monkeypatch.setattr(expert_module, "Expert", Slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: len(list(experts.children())))
        assert begun.wait(60)
        second = pool.submit(lambda: len(list(experts.children())))
        wait([second], timeout=0.2)  # without a lock it has ended by now
        go_on.set()
        assert first.result() == second.result() == tiny_model().config.n_routed_experts


def test_an_engine_notices_a_change_of_an_expert(folder: Path) -> None:
    model = loaded(folder)
    engine = Engine(model, context_length=128, sequences=1)
    engine.ends = frozenset()
    params = SamplingParams(max_tokens=8, temperature=0, logprobs=True)

    def scores() -> list[float]:
        return [token.chosen for token in collect(engine.generate(TOKENS.tolist(), params)).logprobs]

    before = scores()
    assert all(folded(model))
    for layer in model.layers:
        for expert in layer.get_submodule("ffn.experts").children():
            expert.register_forward_hook(lambda module, inputs, output: output * 2)
    assert scores() != before


def test_every_expert_needs_its_entry() -> None:
    model = Transformer(tiny_model().config, stored_experts=True)
    experts = model.layers[0].get_submodule("ffn").experts
    assert isinstance(experts, StoredExperts)
    with pytest.raises(ValueError, match=r"w1\.weight: 1 tensors for \d+ experts"):
        experts.fill({"w1.weight": [torch.zeros(1)]})
