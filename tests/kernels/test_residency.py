"""Experts read from their file within a budget: the same results, bounded memory."""

import ctypes
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import dsv4
from dsv4.checkpoint import RELEASE, save_checkpoint
from dsv4.checkpoint.reader import CheckpointReader
from dsv4.generation import SamplingParams
from dsv4.kernels import native, quant
from dsv4.kernels.moe import ExpertWeights, expert_mlp
from dsv4.kernels.moe.native import packed_layer
from dsv4.kernels.moe.residency import ExpertBudget, ExpertCounts, expert_counts
from dsv4.model.block import Block
from dsv4.testing.tiny import tiny_config, tiny_model

EXPERTS, D, F = 24, 512, 1024
ONE = 3 * D * F // 2 + 3 * D * F // 32  # bytes of an expert
PLACE = -(-ONE // 4096) * 4096 + 12 * 4096  # with the blocks around its pieces

# a model whose experts are larger than the blocks of a disk
WIDE: dict[str, Any] = {
    "quantized": True,
    "expert_dtype": "fp4",
    "hidden_size": 256,
    "moe_intermediate_size": 256,
    "n_routed_experts": 32,
    "num_hash_layers": 0,
}
WIDE_ONE = 3 * 256 * 256 // 2 + 3 * 256 * 256 // 32
WIDE_PLACE = -(-WIDE_ONE // 4096) * 4096 + 12 * 4096

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


def stored(reader: CheckpointReader, experts: int = EXPERTS) -> list[list[Tensor]]:
    """Their matrices, then the scales."""
    parts = ("w1", "w2", "w3")
    return [[reader.tensor(f"{e}.{p}.{kind}") for e in range(experts)] for kind in ("weight", "scale") for p in parts]


@pytest.fixture
def weights(reader: CheckpointReader) -> ExpertWeights:
    return ExpertWeights(*stored(reader), limit=10.0)


class Limit:
    """The budget of one test: a new one takes the place of the last."""

    def __init__(self) -> None:
        self.budget: ExpertBudget | None = None

    def __call__(self, reader: CheckpointReader, budget: int, largest: int = ONE) -> None:
        self.end()
        self.budget = ExpertBudget(reader.maps(), budget, largest)

    def end(self) -> None:
        if self.budget is not None:
            self.budget.close()

    def counts(self) -> ExpertCounts:
        assert self.budget is not None
        return self.budget.counts()


@pytest.fixture
def limit() -> Iterator[Limit]:
    limit = Limit()
    yield limit
    limit.end()


def run(weights: ExpertWeights, *ids: int) -> Tensor:
    """One token through these experts."""
    x = torch.randn(1, D, generator=torch.Generator().manual_seed(1))
    return expert_mlp(x, torch.tensor([ids]), torch.ones(1, len(ids)), weights, "native")


def hint(weights: ExpertWeights, *ids: int, sure: bool = False) -> None:
    """These experts are read ahead."""
    layer = packed_layer(weights)
    assert layer is not None
    long, address = ctypes.c_int64, ctypes.c_void_p
    call = native.function("dsv4_expert_hint", [address, long, *[address] * 6, *[long] * 3, *[ctypes.c_int] * 2], None)
    call((long * len(ids))(*ids), len(ids), *layer.rows, EXPERTS, D, F, layer.kind, sure)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def resident_bytes(file: Path) -> int:
    """What of the maps of `file` is in this process's memory."""
    maps = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    rss = [re.search(r"Rss: +(\d+) kB", text) for text in maps if str(file) in text]
    return sum(1024 * int(found.group(1)) for found in rss if found)


@torch.inference_mode()
@pytest.mark.parametrize("tokens", [1, 5, 200])
def test_a_budget_changes_no_bit(limit: Limit, reader: CheckpointReader, weights: ExpertWeights, tokens: int) -> None:
    x, share = torch.randn(tokens, D), torch.rand(tokens, 4)
    ids = torch.stack([torch.randperm(EXPERTS)[:4] for _ in range(tokens)])
    expected = expert_mlp(x, ids, share, weights, "native")
    for places in (2, 3, 9, EXPERTS + 4):
        limit(reader, places * PLACE)
        for _ in range(3):
            assert torch.equal(expert_mlp(x, ids, share, weights, "native"), expected)
        assert limit.counts().resident <= places
        if places > EXPERTS:
            assert limit.counts().missed == len(ids.unique())


@torch.inference_mode()
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux to see what is resident")
def test_memory_stays_within_the_budget(limit: Limit, reader: CheckpointReader, weights: ExpertWeights) -> None:
    file = reader.file_of("0.w1.weight")
    limit(reader, 6 * PLACE)
    before = resident_bytes(file)
    for _ in range(4):
        ids = torch.stack([torch.randperm(EXPERTS)[:3] for _ in range(64)])
        expert_mlp(torch.randn(64, D), ids, torch.rand(64, 3), weights, "native")
        assert limit.counts().resident == 6
        assert resident_bytes(file) == before  # experts are read, their map is not touched
    limit.end()
    expert_mlp(torch.randn(64, D), ids, torch.rand(64, 3), weights, "native")
    assert resident_bytes(file) >= 20 * ONE


@torch.inference_mode()
def test_what_is_asked_for_often_stays(limit: Limit, reader: CheckpointReader, weights: ExpertWeights) -> None:
    def missed(*ids: int) -> int:
        before = limit.counts()
        expert_mlp(torch.randn(1, D), torch.tensor([ids]), torch.rand(1, len(ids)), weights, "native")
        after = limit.counts()
        assert after.taken - before.taken == len(ids)
        assert after.bytes_read - before.bytes_read >= (after.missed - before.missed) * ONE
        return after.missed - before.missed

    limit(reader, 8 * PLACE)
    assert missed(0, 1) == 2
    for turn in range(6):
        assert [missed(0, 1) for _ in range(4)] == [0] * 4
        others = [2 + (7 * turn + i) % (EXPERTS - 2) for i in range(7)]  # the least recently used would be 0 and 1 now
        assert sum(missed(other) for other in others) == 7


@torch.inference_mode()
def test_what_is_read_ahead_is_counted_when_it_is_used(
    limit: Limit, reader: CheckpointReader, weights: ExpertWeights
) -> None:
    limit(reader, 8 * PLACE)
    hint(weights, 3, 4)
    until(lambda: limit.counts().bytes_read >= 2 * ONE)
    assert (limit.counts().taken, limit.counts().resident) == (0, 2)
    for _ in range(2):
        run(weights, 3, 4)
        assert (limit.counts().missed, limit.counts().foreseen) == (0, 2)
    run(weights, 5)
    assert (limit.counts().missed, limit.counts().foreseen) == (1, 2)
    assert limit.counts().reading > 0


@torch.inference_mode()
def test_wrong_guesses_leave_their_places(limit: Limit, reader: CheckpointReader, weights: ExpertWeights) -> None:
    limit(reader, 3 * PLACE)
    expected = {e: run(weights, e) for e in range(EXPERTS)}
    for e in range(EXPERTS):
        hint(weights, *((e + i) % EXPERTS for i in (1, 2, 3, 4)), sure=e % 2 == 0)
        assert torch.equal(run(weights, e), expected[e])
        assert limit.counts().resident <= 3
    assert limit.counts().taken == 2 * EXPERTS


@torch.inference_mode()
def test_what_is_left_of_a_wrong_guess_is_read_when_it_is_needed(limit: Limit, tmp_path: Path) -> None:
    """Experts of several reads: a guess that was dropped in the middle is whole when a layer takes it."""
    D, F, count = 1024, 4096, 4
    state: dict[str, Tensor] = {}
    for e in range(count):
        for name, shape in (("w1", (F, D)), ("w2", (D, F)), ("w3", (F, D))):
            state[f"{e}.{name}.weight"] = torch.randint(-128, 128, (shape[0], shape[1] // 2), dtype=torch.int8)
            state[f"{e}.{name}.scale"] = torch.full((shape[0], shape[1] // 32), 2.0**-6).to(torch.float8_e8m0fnu)
    save_file(state, tmp_path / "model-00001-of-00001.safetensors")
    file = CheckpointReader(tmp_path)
    large = ExpertWeights(*stored(file, count), limit=10.0)
    one, x = 3 * D * F // 2 + 3 * D * F // 32, torch.randn(1, D)
    layer = packed_layer(large)
    assert layer is not None
    long, address = ctypes.c_int64, ctypes.c_void_p
    call = native.function("dsv4_expert_hint", [address, long, *[address] * 6, *[long] * 3, *[ctypes.c_int] * 2], None)

    def use(e: int) -> Tensor:
        return expert_mlp(x, torch.tensor([[e]]), torch.ones(1, 1), large, "native")

    expected = [use(e) for e in range(count)]
    for places in (2, 3):
        limit(file, places * (one + 16 * 4096), one)
        for turn in range(3 * count):
            wrong, right = turn % count, (turn + 1) % count
            call((long * 1)(wrong), 1, *layer.rows, count, D, F, layer.kind, False)
            if turn % 3 == 0:  # the guess is running
                begun = limit.counts().bytes_read
                until(lambda begun=begun: limit.counts().bytes_read > begun or limit.counts().reading > 0)
            assert torch.equal(use(right), expected[right])  # drops the guess
            assert torch.equal(use(wrong), expected[wrong])
            assert limit.counts().resident <= places


@torch.inference_mode()
@pytest.mark.parametrize("right", [True, False])
def test_guesses_that_do_not_come_true_are_no_longer_read(tmp_path: Path, right: bool) -> None:
    """A layer's attention changes nothing, or everything, of what its router sees."""
    config = tiny_config(**WIDE)
    torch.manual_seed(0)
    state = tiny_model(config).state_dict()
    for layer in range(config.num_hidden_layers):
        # wrong: what a layer's attention adds outweighs all that was there before
        state[f"layers.{layer}.attn.wo_b.weight"] *= 0 if right else 1000 * 100**layer
    save_checkpoint(tmp_path / "model", config, state, RELEASE)
    model = dsv4.load(tmp_path / "model", "release", context_length=512, expert_memory=24 * WIDE_PLACE, fused=True)
    budget = model.expert_budget
    assert budget is not None
    model.engine.ends = frozenset()

    def read_for_each(tokens: int, seed: int) -> float:
        """Bytes read for an expert that was needed and not there."""
        before = budget.counts()
        draw = torch.Generator().manual_seed(seed)
        for token in torch.randint(config.vocab_size, (tokens,), generator=draw).tolist():
            list(model.engine.generate([token], SamplingParams(max_tokens=2, temperature=1, seed=seed)))
        after = budget.counts()
        return (after.bytes_read - before.bytes_read) / (
            after.missed + after.foreseen - before.missed - before.foreseen
        )

    read_for_each(40, 0)  # learns
    assert read_for_each(40, 1) < 1.15 * WIDE_ONE  # pieces of an expert lie beside each other: two blocks around them


@torch.inference_mode()
def test_a_prompt_reads_ahead_what_its_last_tokens_name(tmp_path: Path) -> None:
    config = tiny_config(**WIDE)
    save_checkpoint(tmp_path / "model", config, tiny_model(config).state_dict(), RELEASE)
    prompt = torch.randint(config.vocab_size, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    answers = []
    for memory in ("all", 48 * WIDE_PLACE):
        model = dsv4.load(tmp_path / "model", "release", context_length=512, expert_memory=memory, fused=True)
        answers.append(list(model.engine.generate(prompt, SamplingParams(max_tokens=8, temperature=0))))
    assert answers[0] == answers[1]
    assert model.expert_budget is not None
    assert model.expert_budget.counts().foreseen > 0


@torch.inference_mode()
def test_a_file_that_cannot_be_read_fails_the_call(limit: Limit, reader: CheckpointReader, tmp_path: Path) -> None:
    shutil.copy(reader.file_of("0.w1.weight"), tmp_path)
    copy = CheckpointReader(tmp_path)
    weights = ExpertWeights(*stored(copy, 4), limit=10.0)
    limit(copy, 4 * PLACE)
    x, ids, share = torch.randn(1, D), torch.tensor([[0, 3]]), torch.rand(1, 2)
    expected = expert_mlp(x, ids, share, weights, "native")
    limit(copy, 4 * PLACE)
    file = copy.file_of("0.w1.weight")
    size = file.stat().st_size
    os.truncate(file, 4096)
    with pytest.raises(OSError, match="an expert could not be read from the checkpoint's files: "):
        expert_mlp(x, ids, share, weights, "native")
    shutil.copyfile(reader.file_of("0.w1.weight"), file)  # the same file, whole again
    assert file.stat().st_size == size
    assert torch.equal(expert_mlp(x, ids, share, weights, "native"), expected)


def test_a_budget_must_hold_two_experts(limit: Limit, reader: CheckpointReader) -> None:
    with pytest.raises(ValueError, match="must hold two of 1,000 bytes, got 60,000"):
        limit(reader, 60_000, 1000)
    with pytest.raises(ValueError, match="got 0"):
        limit(reader, 0, 1000)


@torch.inference_mode()
def test_every_model_has_its_own_budget(reader: CheckpointReader, weights: ExpertWeights) -> None:
    """A second one neither ends the first nor shares its memory; the end of one leaves the other."""
    other = CheckpointReader(reader.folder)
    theirs = ExpertWeights(*stored(other), limit=10.0)
    expected = run(weights, 0, 1)
    first = ExpertBudget(reader.maps(), 6 * PLACE, ONE)
    second = ExpertBudget(other.maps(), 4 * PLACE, ONE)
    try:
        for mine in (weights, theirs, weights):
            assert torch.equal(run(mine, 0, 1), expected)
        assert (first.counts().taken, first.counts().missed, second.counts().taken) == (4, 2, 2)
        assert expert_counts().taken == 6
        with pytest.raises(ValueError, match=r"safetensors: the experts of this map have a budget already"):
            ExpertBudget(reader.maps(), 6 * PLACE, ONE)
        second.close()
        assert torch.equal(run(theirs, 0, 1), expected)
        assert torch.equal(run(weights, 0, 1), expected)
        assert (first.counts().taken, first.counts().missed, second.counts().taken) == (6, 2, 0)
    finally:
        first.close()
        second.close()
    assert expert_counts() == ExpertCounts(0, 0, 0, 0, 0, 0)


@torch.inference_mode()
def test_a_budget_that_ends_under_a_layer_waits_for_it(reader: CheckpointReader, weights: ExpertWeights) -> None:
    x, ids = torch.randn(64, D), torch.stack([torch.randperm(EXPERTS)[:3] for _ in range(64)])
    expected = expert_mlp(x, ids, torch.ones(64, 3), weights, "native")
    over = threading.Event()

    @torch.inference_mode()
    def layers() -> bool:
        same = True
        while not over.is_set():
            same &= torch.equal(expert_mlp(x, ids, torch.ones(64, 3), weights, "native"), expected)
        return same

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(layers)
        for _ in range(20):
            ExpertBudget(reader.maps(), 6 * PLACE, ONE).close()
        over.set()
        assert running.result()


def test_the_largest_expert_is_measured() -> None:
    """A budget counts in places of the largest one, and an expert that does not fit into a place is not limited."""
    small = torch.zeros(4, 4)
    w = [small, small.double(), small]
    none = [None] * 3
    assert ExpertWeights(w, w, w, none, none, none).largest_expert() == 3 * 4 * 4 * 8
    assert ExpertWeights(w, w, w, none, none, none, shared=True).largest_expert() == 3 * 4 * 4 * 8
    last = [small, small, small.double()]  # the shared one is never read from disk
    assert ExpertWeights(last, last, last, none, none, none, shared=True).largest_expert() == 3 * 4 * 4 * 4


@torch.inference_mode()
def test_a_step_that_fails_is_over(tmp_path: Path) -> None:
    """Who tells the progress of reading must not wait for a step that has ended with an error."""
    config = tiny_config(**WIDE | {"num_hash_layers": 1})
    save_checkpoint(tmp_path / "model", config, tiny_model(config).state_dict(), RELEASE)
    model = dsv4.load(tmp_path / "model", "release", context_length=256, expert_memory=24 * WIDE_PLACE, fused=True)
    assert model.expert_budget is not None
    first = model.model.layers[0]
    assert isinstance(first, Block)
    assert list(model.engine.generate([1, 2, 3], SamplingParams(max_tokens=2)))
    first.ffn.gate.tid2eid.fill_(10_000)
    model.engine.submit([1, 2, 3], SamplingParams(max_tokens=2))
    with pytest.raises(IndexError):
        model.engine.step()
    counts = model.expert_budget.counts()
    assert (counts.layer, counts.layers) == (0, 0)
