"""A deeper model says what the shallow one says, and its new layers learn from the first step on."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsv4.checkpoint import FP32, save_checkpoint
from dsv4.config import ModelConfig
from dsv4.model.layers import FP32 as FP32_NUMERICS
from dsv4.model.transformer import Transformer
from dsv4.posttraining.base_model import BaseModel
from dsv4.posttraining.deepen import deeper_config, deeper_state, save_deeper
from dsv4.testing.tiny import tiny_config, tiny_draft_config, tiny_model
from recipes.nano import deepen
from tests.conftest import ROOT

ORDER = [0, 1, 2, 1, 2, 3, 3]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model = tiny_model()
    save_checkpoint(tmp_path / "base", model.config, model.state_dict(), FP32)
    return tmp_path / "base"


def _said(model: Transformer, length: int) -> Tensor:
    """Logits of a row of tokens, [T, V]."""
    return model.logits(model.hidden(torch.arange(length) * 7 % 97, model.pack([length])))


def test_it_says_the_same(base: Path, tmp_path: Path) -> None:
    save_deeper(tmp_path / "deeper", base, ORDER)
    shallow = BaseModel.open(base).trainable(FP32_NUMERICS)
    deeper = BaseModel.open(tmp_path / "deeper").trainable(FP32_NUMERICS)
    assert deeper.config.compress_ratios == (0, 4, 128, 4, 128, 4, 4, 0)
    with torch.inference_mode():
        said, wanted = _said(deeper, 300), _said(shallow, 300)
    assert (said - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_the_command_of_the_page_fits_the_bundled_model() -> None:
    page = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
    (order,) = re.findall(r"recipes\.nano\.deepen models/nano \S+ --layers ([\d,]+)", page)
    nano = ModelConfig.from_file(ROOT / "models" / "nano")
    places = [int(part) for part in order.split(",")]
    assert deeper_config(nano, places).num_hidden_layers == len(places) > nano.num_hidden_layers


def test_new_layers_learn_from_the_first_step(base: Path) -> None:
    opened = BaseModel.open(base)
    deeper = tiny_model(deeper_config(opened.config, ORDER))
    deeper.load_state_dict(deeper_state(opened, ORDER))
    _said(deeper, 200).square().mean().backward()
    for place in (3, 4, 6):
        layer = deeper.blocks[place]
        assert not layer.attn.wo_b.weight.any()
        grad = layer.attn.wo_b.weight.grad
        assert grad is not None
        assert grad.abs().max() > 0


def test_a_folder_that_loads_has_its_tokenizer(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tells a whole folder, its index, is written last."""
    (base / "tokenizer.json").write_text("{}")
    save_deeper(tmp_path / "deeper", base, ORDER)
    assert (tmp_path / "deeper" / "tokenizer.json").read_text() == "{}"

    def fail(file: Path, data: object) -> int:
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*tokenizer\.json"):
        save_deeper(tmp_path / "cut", base, ORDER)
    assert not list((tmp_path / "cut").glob("*.index.json"))


def test_a_draft_head_reads_the_layers_it_read_before() -> None:
    head = deeper_config(tiny_draft_config(), ORDER).draft_head
    assert head.target_layer_ids == (1, 5)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([0, 1, 2], "0 to 3 once each"),
        ([0, 2, 1, 3], "once each in this order"),
        ([0, 1, 2, 3, 4], "0 to 3"),
        ([0, 0, 1, 2, 3], "routed by token ids"),
    ],
)
def test_an_order_that_fits_no_model_is_refused(order: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        deeper_config(tiny_config(), order)


@pytest.mark.parametrize(
    ("layers", "code", "said"),
    [
        ("0,1", 1, "layers: expected 0 to 3 once each in this order, and copies behind; got [0, 1]\n"),
        ("0,x", 2, "expected numbers of layers such as 0,1,2,2,3, got '0,x'\n"),
    ],
)
def test_the_command_names_what_is_wrong(
    layers: str, code: int, said: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        deepen.main([str(base), str(tmp_path / "new"), "--layers", layers])
    assert ended.value.code == code
    assert capsys.readouterr().err.endswith(said)
    assert not (tmp_path / "new").exists()
