"""Where threads run and weights lie, for fake machines."""

import pytest

from dsv4.config.numa import NumaChoice
from dsv4.kernels import native
from dsv4.planning.placement import Placement, nodes_text, place, place_bytes
from dsv4.planning.plan import EngineRequest, make_plan
from dsv4.planning.topology import MemoryNode, Topology
from tests.planning.fake_nodes import GIB
from tests.planning.test_engine_plan import FLASH, needs_native

CORES = tuple((cpu, cpu + 8) for cpu in range(8))  # each of two processors
ONE = Topology((MemoryNode(0, CORES, 64 * GIB),))
TWO = Topology((MemoryNode(0, CORES[:4], 64 * GIB), MemoryNode(3, CORES[4:], 64 * GIB)))
UNEVEN = Topology((MemoryNode(0, CORES[:6], 64 * GIB), MemoryNode(1, CORES[6:], 64 * GIB)))


def placed(topology: Topology, threads: int, choice: NumaChoice = "auto", experts: int | None = 40 * GIB) -> Placement:
    return place_bytes(topology, choice, threads, experts, 8 * GIB)


def test_one_node_changes_nothing_unless_asked() -> None:
    assert placed(ONE, 8) == Placement("1 node: nothing to place")
    asked = placed(ONE, 8, "interleave")
    assert asked.why == "1 node, 8 threads pinned (8 on node 0); no weights to place"
    assert asked.threads is not None
    assert asked.threads.cpus == CORES
    assert not asked.nodes
    assert not asked.experts
    assert placed(Topology(), 8, "interleave") == Placement("the system tells no memory nodes: nothing to place")


def test_off_places_nothing() -> None:
    found = placed(TWO, 8, "off")
    assert (found.threads, found.nodes) == (None, ())


@pytest.mark.parametrize("choice", ["auto", "interleave"])
def test_threads_and_experts_are_on_both_nodes(choice: NumaChoice) -> None:
    found = placed(TWO, 8, choice)
    assert found.threads is not None
    assert found.threads.cpus == ((0, 8), (4, 12), (1, 9), (5, 13), (2, 10), (6, 14), (3, 11), (7, 15))
    assert found.threads.near == (0, 1) * 4
    assert found.nodes == (0, 3)  # by the system's numbers
    assert found.experts
    assert found.why == (
        "2 nodes, 8 threads pinned (4 on node 0, 4 on node 3); experts interleaved by expert, other weights by page"
    )


def test_as_many_threads_as_processors_have_one_each() -> None:
    found = placed(TWO, 16).threads
    assert found is not None
    assert sorted(found.cpus) == [(cpu,) for cpu in range(16)]
    assert all(near == (cpu % 8 >= 4) for (cpu,), near in zip(found.cpus, found.near, strict=True))


def test_fewer_threads_share_the_processors_of_their_node() -> None:
    found = placed(TWO, 4).threads
    assert found is not None
    assert found.cpus == (TWO.nodes[0].cpus, TWO.nodes[1].cpus) * 2


@pytest.mark.parametrize(("threads", "shares"), [(2, [1, 1]), (8, [6, 2]), (9, [7, 2]), (16, [12, 4]), (13, [10, 3])])
def test_nodes_get_threads_by_their_processors(threads: int, shares: list[int]) -> None:
    found = placed(UNEVEN, threads).threads
    assert found is not None
    assert [found.near.count(node) for node in (0, 1)] == shares
    assert len(found.cpus) == threads


@pytest.mark.parametrize(
    ("topology", "threads", "told"),
    [
        (TWO, 1, "2 nodes, 1 thread, fewer than nodes: nothing is placed"),
        (TWO, 17, "2 nodes, 17 threads for 16 processors: nothing is placed"),
        (
            Topology(TWO.nodes, 2.5),
            8,
            "2 nodes, 8 threads under the container's quota of 2.5 processors: nothing is placed",
        ),
    ],
)
def test_threads_that_have_no_places_of_their_own(topology: Topology, threads: int, told: str) -> None:
    assert placed(topology, threads) == Placement(told)


def test_a_node_whose_processors_are_forbidden_does_not_count() -> None:
    assert placed(Topology((*ONE.nodes, MemoryNode(1, (), 64 * GIB))), 8) == Placement("1 node: nothing to place")


def test_weights_that_do_not_fit_a_node_stay_where_they_are() -> None:
    small = Topology((TWO.nodes[0], MemoryNode(1, CORES[4:], 26 * GIB)))
    found = placed(small, 8)
    assert found.threads is not None
    assert not found.nodes
    assert not found.experts
    assert found.why.endswith("weights are left where they lie: node 1 has 26.00 GiB free for 24.00 GiB")
    assert placed(small, 8, experts=38 * GIB).nodes == (0, 1)  # a tenth is not for weights


def test_experts_that_are_read_from_disk_have_no_node() -> None:
    found = placed(TWO, 8, experts=None)
    assert found.nodes == (0, 3)
    assert not found.experts
    assert found.why.endswith("experts are read from disk, other weights by page")


def test_kernels_are_asked_for_only_where_something_would_be_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have to be compiled first."""
    plan, asked = make_plan(FLASH, EngineRequest(sequences=1), 512 * GIB), []
    monkeypatch.setattr(native, "available", lambda: bool(asked.append(True)))
    assert place(plan, ONE, "auto", 8) == Placement("1 node: nothing to place")
    assert place(plan, TWO, "auto", 1).why.startswith("2 nodes, 1 thread, fewer than nodes")
    assert not asked
    for topology, choice in ((TWO, "auto"), (ONE, "interleave")):
        assert place(plan, topology, choice, 8) == Placement("needs the native kernels: nothing is placed")
    assert len(asked) == 2


@needs_native
def test_placements_of_planned_models() -> None:
    big = Topology(tuple(MemoryNode(n, CORES[4 * n : 4 * n + 4], 256 * GIB) for n in (0, 1)))
    request = EngineRequest(sequences=1)
    whole, streamed = (make_plan(FLASH, request, free * GIB) for free in (512, 40))
    assert place(whole, big, "auto", 8).experts
    assert not place(streamed, big, "auto", 8).experts
    assert place(whole, big, "auto", 8).to_dict()["nodes"] == [0, 1]
    assert place(whole, big, "auto", 8).to_dict()["cpus"][0] == [0, 8]
    card = make_plan(FLASH, EngineRequest(sequences=1, device="cuda:0"), 512 * GIB)
    assert place(card, big, "auto", 8) == Placement("the model computes on cuda:0: nothing to place")
    with pytest.raises(ValueError, match="numa must be one of auto, off, interleave, got 'both'"):
        place(whole, big, "both", 8)  # pyrefly: ignore[bad-argument-type]


def test_what_doctor_says_of_nodes() -> None:
    assert nodes_text(ONE) == "1 node: nothing to place"
    assert nodes_text(TWO).startswith("2 nodes: node 0 with 8 processors and 64.00 GiB free, node 3 with 8 processors")
    assert nodes_text(Topology()) == "the system tells no memory nodes: nothing to place"
