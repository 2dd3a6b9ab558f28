"""Experts read from their file within a budget: the same results, bounded memory."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dsv4.checkpoint.reader import CheckpointReader
from dsv4.engine import Engine
from dsv4.generation import SamplingParams
from dsv4.kernels import native, quant
from dsv4.kernels.moe import ExpertWeights, expert_mlp
from dsv4.kernels.moe.residency import expert_counts, limit_experts
from dsv4.model.block import Block
from dsv4.testing.tiny import tiny_model

EXPERTS, D, F = 24, 512, 1024
ONE = 3 * D * F // 2 + 3 * D * F // 32  # bytes of an expert
PLACE = -(-ONE // 4096) * 4096 + 12 * 4096  # with the blocks around its pieces

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
    limit_experts({}, None)


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
    for places in (2, 3, 9, EXPERTS + 4):
        limit_experts(reader.maps(), places * PLACE, ONE)
        for _ in range(3):
            assert torch.equal(expert_mlp(x, ids, share, weights, "native"), expected)
        assert expert_counts().resident <= places
        if places > EXPERTS:
            assert expert_counts().missed == len(ids.unique())


@torch.inference_mode()
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux to see what is resident")
def test_memory_stays_within_the_budget(reader: CheckpointReader, weights: ExpertWeights) -> None:
    file = reader.file_of("0.w1.weight")
    limit_experts(reader.maps(), 6 * PLACE, ONE)
    before = resident_bytes(file)
    for _ in range(4):
        ids = torch.stack([torch.randperm(EXPERTS)[:3] for _ in range(64)])
        expert_mlp(torch.randn(64, D), ids, torch.rand(64, 3), weights, "native")
        assert expert_counts().resident == 6
        assert resident_bytes(file) == before  # experts are read, their map is not touched
    limit_experts({}, None)
    expert_mlp(torch.randn(64, D), ids, torch.rand(64, 3), weights, "native")
    assert resident_bytes(file) >= 20 * ONE


@torch.inference_mode()
def test_what_is_asked_for_often_stays(reader: CheckpointReader, weights: ExpertWeights) -> None:
    def missed(*ids: int) -> int:
        before = expert_counts()
        expert_mlp(torch.randn(1, D), torch.tensor([ids]), torch.rand(1, len(ids)), weights, "native")
        after = expert_counts()
        assert after.taken - before.taken == len(ids)
        assert after.bytes_read - before.bytes_read >= (after.missed - before.missed) * ONE
        return after.missed - before.missed

    limit_experts(reader.maps(), 8 * PLACE, ONE)
    assert missed(0, 1) == 2
    for turn in range(6):
        assert [missed(0, 1) for _ in range(4)] == [0] * 4
        others = [2 + (7 * turn + i) % (EXPERTS - 2) for i in range(7)]  # the least recently used would be 0 and 1 now
        assert sum(missed(other) for other in others) == 7


@torch.inference_mode()
def test_a_file_that_cannot_be_read_fails_the_call(reader: CheckpointReader, tmp_path: Path) -> None:
    shutil.copy(reader.file_of("0.w1.weight"), tmp_path)
    copy = CheckpointReader(tmp_path)
    parts = [
        [copy.tensor(f"{e}.{p}.{kind}") for e in range(4)] for kind in ("weight", "scale") for p in ("w1", "w2", "w3")
    ]
    weights = ExpertWeights(*parts, limit=10.0)
    limit_experts(copy.maps(), 4 * PLACE, ONE)
    x, ids, share = torch.randn(1, D), torch.tensor([[0, 3]]), torch.rand(1, 2)
    expected = expert_mlp(x, ids, share, weights, "native")
    limit_experts(copy.maps(), 4 * PLACE, ONE)
    file = copy.file_of("0.w1.weight")
    size = file.stat().st_size
    os.truncate(file, 4096)
    with pytest.raises(OSError, match="an expert could not be read from the checkpoint's files: "):
        expert_mlp(x, ids, share, weights, "native")
    shutil.copyfile(reader.file_of("0.w1.weight"), file)  # the same file, whole again
    assert file.stat().st_size == size
    assert torch.equal(expert_mlp(x, ids, share, weights, "native"), expected)


def test_a_budget_must_hold_two_experts(reader: CheckpointReader) -> None:
    with pytest.raises(ValueError, match="must hold two of 1,000 bytes, got 60,000"):
        limit_experts(reader.maps(), 60_000, 1000)
    with pytest.raises(ValueError, match="got 0"):
        limit_experts(reader.maps(), 0, 1000)


@torch.inference_mode()
def test_a_step_that_fails_is_over() -> None:
    """Who tells the progress of reading must not wait for a step that has ended with an error."""
    model = tiny_model()
    engine = Engine(model, context_length=256, fused=True)
    first = model.layers[0]
    assert isinstance(first, Block)
    first.ffn.gate.tid2eid.fill_(10_000)
    engine.submit([1, 2, 3], SamplingParams(max_tokens=2))
    with pytest.raises(IndexError):
        engine.step()
    assert (expert_counts().layer, expert_counts().layers) == (0, 0)
