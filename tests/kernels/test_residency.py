"""Experts read from their file within a budget: the same results, bounded memory."""

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dsv4.checkpoint.reader import CheckpointReader
from dsv4.kernels import native, quant
from dsv4.kernels.moe import ExpertWeights, expert_mlp
from dsv4.kernels.moe.residency import limit_experts

EXPERTS, D, F = 24, 512, 1024
ONE = 3 * D * F // 2 + 3 * D * F // 32  # bytes of an expert

pytestmark = pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.why_not()}")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CheckpointReader:
    folder = tmp_path_factory.mktemp("experts")
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    for e in range(EXPERTS):
        for name, shape in (("w1", (F, D)), ("w2", (D, F)), ("w3", (F, D))):
            state[f"{e}.{name}.weight"], state[f"{e}.{name}.scale"] = quant.quantize_fp4_weight(torch.randn(shape) / 32)
    save_file(state, folder / "model-00001-of-00001.safetensors")
    return CheckpointReader(folder)


@pytest.fixture
def weights(reader: CheckpointReader) -> ExpertWeights:
    parts = ("w1", "w2", "w3")
    return ExpertWeights(
        *([reader.tensor(f"{e}.{p}.weight") for e in range(EXPERTS)] for p in parts),
        *([reader.tensor(f"{e}.{p}.scale") for e in range(EXPERTS)] for p in parts),
        limit=10.0,
    )


@pytest.fixture(autouse=True)
def no_limit_afterwards() -> Iterator[None]:
    yield
    limit_experts((), None)


def resident_bytes(file: Path) -> int:
    """What of the maps of `file` is in this process's memory."""
    maps = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    rss = [re.search(r"Rss: +(\d+) kB", text) for text in maps if str(file) in text]
    return sum(1024 * int(found.group(1)) for found in rss if found)


@torch.inference_mode()
@pytest.mark.parametrize("tokens", [1, 5, 200])
def test_a_budget_changes_no_bit(reader: CheckpointReader, weights: ExpertWeights, tokens: int) -> None:
    x, share = torch.randn(tokens, D), torch.rand(tokens, 4)
    ids = torch.stack([torch.randperm(EXPERTS)[:4] for _ in range(tokens)])
    expected = expert_mlp(x, ids, share, weights, "native")
    for budget in (1, 2 * ONE, 9 * ONE, 10**12):
        limit_experts(reader.maps(), budget)
        for _ in range(3):
            assert torch.equal(expert_mlp(x, ids, share, weights, "native"), expected)


@torch.inference_mode()
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux to see what is resident")
def test_memory_stays_within_the_budget(reader: CheckpointReader, weights: ExpertWeights) -> None:
    file = reader.file_of("0.w1.weight")
    limit_experts(reader.maps(), 6 * ONE)
    for _ in range(4):
        ids = torch.stack([torch.randperm(EXPERTS)[:3] for _ in range(64)])
        expert_mlp(torch.randn(64, D), ids, torch.rand(64, 3), weights, "native")
        assert 3 * ONE <= native.function("dsv4_residency_used", [], ctypes.c_int64)() <= 6 * ONE
        # the system brings in some neighbouring pages of its own accord
        assert resident_bytes(file) <= 9 * ONE
    limit_experts((), None)
    expert_mlp(torch.randn(64, D), ids, torch.rand(64, 3), weights, "native")
    assert resident_bytes(file) >= 20 * ONE


def test_a_budget_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1 byte, got 0"):
        limit_experts((), 0)
