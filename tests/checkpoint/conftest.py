"""A tiny model's parameters, and folders that hold them in every layout."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsv4.checkpoint import LAYOUTS, Storage, parameters, save_checkpoint
from dsv4.config import ModelConfig, Yarn

SaveFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    """Every attention kind, hash and learned routing, one prediction block; sizes that no tile divides."""
    return ModelConfig(
        vocab_size=96,
        hidden_size=256,
        num_hidden_layers=4,
        num_hash_layers=1,
        num_nextn_predict_layers=1,
        num_attention_heads=4,
        head_dim=64,
        qk_rope_head_dim=32,
        q_lora_rank=96,
        o_groups=2,
        o_lora_rank=64,
        sliding_window=16,
        compress_ratios=(0, 4, 128, 4, 0),
        index_n_heads=4,
        index_head_dim=64,
        index_topk=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=96,
        routed_scaling_factor=1.5,
        swiglu_limit=10.0,
        yarn=Yarn(),
    )


@pytest.fixture(scope="session")
def float_state(tiny: ModelConfig) -> dict[str, Tensor]:
    """Random float32 values for every parameter of `tiny`."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}
    for parameter in parameters(tiny):
        if parameter.storage is Storage.TABLE:
            rows = [torch.randperm(tiny.n_routed_experts, generator=generator)[:2] for _ in range(tiny.vocab_size)]
            state[parameter.name] = torch.stack(rows)
        else:
            value = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1])
            state[parameter.name] = value + 1 if parameter.storage is Storage.NORM else value
    return state


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors here are tiny: threads that wait for each other cost more than they bring on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def _written(
    tmp_path_factory: pytest.TempPathFactory, tiny: ModelConfig, float_state: dict[str, Tensor]
) -> Callable[[str, int | None], Path]:
    """Folders written once per session."""
    root = tmp_path_factory.mktemp("saved")

    def write(layout: str, max_shard_bytes: int | None) -> Path:
        folder = root / f"{layout}-{max_shard_bytes}"
        if not folder.exists():
            extra = {"tokenizer_config.json": b"{}", "LICENSE": b"MIT"}
            options = {"extra_files": extra, "max_shard_bytes": max_shard_bytes}
            save_checkpoint(folder, tiny, float_state, LAYOUTS[layout], **options)
        return folder

    return write


@pytest.fixture
def save(tmp_path: Path, _written: Callable[[str, int | None], Path]) -> SaveFolder:
    """save(layout="release", name=..., max_shard_bytes=...) -> a folder of the test's own."""

    def copy(layout: str = "release", name: str = "model", max_shard_bytes: int | None = None) -> Path:
        return shutil.copytree(_written(layout, max_shard_bytes), tmp_path / name)

    return copy
