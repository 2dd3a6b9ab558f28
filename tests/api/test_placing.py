"""A placement put into effect: which memory goes where, and what is told where the system refuses."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import dsv4
from dsv4.api import loading
from dsv4.api.placing import pieces, settle
from dsv4.checkpoint import RELEASE, save_checkpoint
from dsv4.generation import SamplingParams
from dsv4.kernels import native
from dsv4.kernels.native.places import ThreadPlaces, node_of_expert
from dsv4.model.transformer import Transformer
from dsv4.planning.placement import Placement
from dsv4.planning.topology import MemoryNode, Topology
from dsv4.testing.tiny import tiny_config, tiny_model
from tests.kernels.test_places import NODES, refused

PLACES = ThreadPlaces(((0,), (1,)), (0, 1), 2, experts=True)
ON_TWO = Placement("for a test", PLACES, (4, 7))
needs_native = pytest.mark.skipif(not native.available(), reason=f"native kernels: {native.why_not()}")


class System:
    """Records what is asked of it. refusal: what it answers instead; astray: bytes of each piece that lie elsewhere."""

    def __init__(self, refusal: int = 0, astray: int = 0) -> None:
        self.put_pieces: list[tuple[int, int, tuple[int, ...]]] = []
        self.pins: list[tuple[int, ...]] = []
        self.told: list[str] = []
        self.refusal, self.astray = refusal, astray

    def put(self, address: int, size: int, nodes: Sequence[int]) -> int:
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self.put_pieces.append((address, size, tuple(nodes)))
        return self.astray

    def pin(self, cpus: tuple[int, ...]) -> None:
        self.pins.append(cpus)

    def refuse(self, cpus: tuple[int, ...]) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def settle(self, model: Transformer, placement: Placement, **calls: object) -> ThreadPlaces | None:
        made = {"put": self.put, "pin": self.pin} | calls
        return settle(model, placement, self.told.append, **made)  # pyrefly: ignore[bad-argument-type]


def test_each_expert_goes_to_its_node_and_the_rest_to_all() -> None:
    model, system = tiny_model(), System()
    assert system.settle(model, ON_TWO) == PLACES
    assert system.pins == [(0,), (1,)]
    assert not system.told
    put = {address: nodes for address, _, nodes in system.put_pieces}
    assert len(put) == len(system.put_pieces)
    for block in model.blocks:
        for e, expert in enumerate(block.ffn.experts):
            home = ON_TWO.nodes[node_of_expert(block.spec.index, e, 2)]
            assert {put.pop(weight.data_ptr()) for weight in expert.parameters()} == {(home,)}
    assert set(put.values()) == {(4, 7)}
    for name in ("embed.weight", "head.weight", "layers.0.ffn.shared_experts.w1.weight", "layers.0.attn.wkv.weight"):
        assert model.get_parameter(name).data_ptr() in put
    total = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
    assert sum(size for _, size, _ in system.put_pieces) == total


def test_experts_without_a_node_stay_where_they_are() -> None:
    model = tiny_model()
    streamed = Placement("for a test", ThreadPlaces(PLACES.cpus, PLACES.near, 2), (4, 7))
    experts = {p.data_ptr() for block in model.blocks for p in block.ffn.experts.parameters()}
    found = list(pieces(model, streamed))
    assert {nodes for *_, nodes in found} == {(4, 7)}
    assert experts.isdisjoint(address for address, *_ in found)


def test_without_nodes_threads_alone_have_places() -> None:
    system = System()
    assert system.settle(tiny_model(), Placement("for a test", PLACES)) == PLACES
    assert not system.put_pieces
    assert system.settle(tiny_model(), Placement("nothing")) is None
    assert system.pins == [(0,), (1,)]


def test_refusals_are_told_once_and_end_nothing() -> None:
    system = System(refusal=errno.EPERM)
    found = system.settle(tiny_model(), ON_TWO)
    assert found == ThreadPlaces(PLACES.cpus, PLACES.near, 2, experts=False)
    assert system.told == [
        "numa: the system does not let memory be placed (Operation not permitted): weights stay where they are"
    ]
    system = System()
    assert system.settle(tiny_model(), ON_TWO, pin=system.refuse) is None
    assert not system.put_pieces
    assert system.told == [
        "numa: the system does not let threads be pinned (Operation not permitted): nothing is placed"
    ]


def test_memory_that_could_not_be_moved_is_told() -> None:
    system = System(astray=1)
    assert system.settle(tiny_model(), ON_TWO) == PLACES
    (line,) = system.told
    assert line.endswith("of weights lie on another node than planned")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(quantized=True, expert_dtype="fp4")
    place = tmp_path_factory.mktemp("model") / "tiny"
    save_checkpoint(place, config, tiny_model(config).state_dict(), RELEASE)
    return place


@needs_native
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no threads")
@pytest.mark.parametrize("second", [0, 1])
def test_a_loaded_model_on_a_fake_machine_answers_the_same(
    second: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 1 may not exist here: then the system refuses. With node 0 twice, memory is put there."""
    cpus = sorted(os.sched_getaffinity(0))
    nodes = (MemoryNode(0, ((cpus[0],),), 2**40), MemoryNode(second, ((cpus[-1],),), 2**40))
    monkeypatch.setattr(loading, "read_topology", lambda: Topology(nodes))
    options = {"context_length": 256, "sequences": 1, "memory": 2**24, "threads": 2}
    before = torch.get_num_threads()
    try:
        texts, told = {}, {}
        for choice in ("off", "auto", "interleave"):
            lines: list[str] = []
            model = dsv4.load(folder, numa=choice, say=lines.append, **options)
            events = model.events(list(range(40)), SamplingParams(max_tokens=12, temperature=1.0, seed=3))
            texts[choice] = [event.token for event in events]
            told[choice] = [line for line in lines if line.startswith("numa: ")]
    finally:
        torch.set_num_threads(before)
    assert texts["off"] == texts["auto"] == texts["interleave"]
    assert told["off"] == []
    assert told["auto"] == told["interleave"]
    assert told["auto"][0].startswith(f"numa: 2 nodes, 2 threads pinned (1 on node 0, 1 on node {second})")
    assert told["auto"][0].endswith("other weights by page; the weights are read now")
    assert len(told["auto"]) <= 2
    if second == 0 and NODES == [0] and not refused():
        assert len(told["auto"]) == 1


def test_an_unknown_choice_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="numa must be one of auto, off, interleave, got 'replicate'"):
        dsv4.load("no/such/folder", numa="replicate")  # pyrefly: ignore[bad-argument-type]
