"""Folders we write load in transformers and give the same logits as the folder they were made from."""

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsv4.checkpoint import CheckpointReader, convert, save_checkpoint, state_for
from dsv4.checkpoint.names import LAYOUTS
from dsv4.config import ModelConfig

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def source(shared_data: Path) -> Path:
    return shared_data / "reference" / "flash_like"


@pytest.fixture(scope="module")
def token_ids(source: Path) -> Tensor:
    return load_file(source / "reference_fp32.safetensors")["input_ids"]


def _logits(folder: Path, token_ids: Tensor) -> Tensor:
    model, info = transformers.DeepseekV4ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    # NOTE: after dequantising on the CPU some tensors stay bfloat16 whatever dtype was asked for
    model = model.float().eval()
    with torch.no_grad():
        logits = model(token_ids).logits
    del model
    gc.collect()
    return logits


@pytest.fixture(scope="module")
def original(source: Path, token_ids: Tensor) -> Tensor:
    return _logits(source, token_ids)


def test_the_original_gives_the_recorded_logits(source: Path, original: Tensor) -> None:
    recorded = load_file(source / "reference_fp32.safetensors")["logits"]
    assert float((original - recorded).abs().max()) < 5e-5


@pytest.mark.parametrize(
    ("dtype", "experts"),
    [("release", None), ("release", "fp8"), ("base", None), ("bf16", None), ("fp32", None)],
)
def test_converted_folders(
    source: Path, tmp_path: Path, token_ids: Tensor, original: Tensor, dtype: str, experts: str | None
) -> None:
    convert(source, tmp_path / "out", dtype=dtype, experts=experts)  # type: ignore[arg-type]
    assert float((_logits(tmp_path / "out", token_ids) - original).abs().max()) < 5e-5


@pytest.mark.parametrize("layout", ["release", "fp32"])
def test_saved_folders(source: Path, tmp_path: Path, token_ids: Tensor, original: Tensor, layout: str) -> None:
    config = ModelConfig.from_file(source)
    state = state_for(config, CheckpointReader(source), "fp32")
    save_checkpoint(tmp_path / "out", config, state, LAYOUTS[layout], max_shard_bytes=4_000_000)
    assert float((_logits(tmp_path / "out", token_ids) - original).abs().max()) < 5e-5
