"""The memory nodes of a machine, read from fake trees and from this machine."""

import os
from pathlib import Path

import pytest

from dsv4.planning.topology import MemoryNode, Topology, cpu_quota, numbers_of, read_topology
from tests.planning.fake_nodes import GIB, fake_machine, process_with

ALL = frozenset(range(16))


def read(folder: Path, allowed: frozenset[int] = ALL, memory: str | None = None) -> Topology:
    process = folder / "process"
    return read_topology(folder, process if memory is None else process_with(process, memory), folder, allowed)


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3\n", {0, 1, 2, 3}), ("0,2-3,10", {0, 2, 3, 10}), ("7", {7}), ("\n", set())]
)
def test_lists_of_the_system(text: str, numbers: set[int]) -> None:
    assert numbers_of(text) == numbers


def test_nodes_with_their_cores_and_free_memory(tmp_path: Path) -> None:
    siblings = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    fake_machine(tmp_path, {0: "0-1,4-5", 10: "2-3,6-7"}, free={0: 8 * GIB, 10: 4 * GIB}, siblings=siblings)
    found = read(tmp_path)
    assert found.nodes == (
        MemoryNode(0, ((0, 4), (1, 5)), 8 * GIB),
        MemoryNode(10, ((2, 6), (3, 7)), 4 * GIB),
    )
    assert found.nodes[0].cpus == (0, 1, 4, 5)


def test_a_cpuset_leaves_only_its_processors_and_memory(tmp_path: Path) -> None:
    fake_machine(tmp_path, {0: "0-3", 1: "4-7", 2: "8-11"})
    assert [node.cpus for node in read(tmp_path, frozenset({1, 5, 6})).nodes] == [(1,), (5, 6), ()]
    assert [node.number for node in read(tmp_path, memory="0,2").nodes] == [0, 2]
    assert read(tmp_path, frozenset({9}), memory="2").nodes == (MemoryNode(2, ((9,),), 64 * GIB),)


def test_a_node_without_memory_is_none(tmp_path: Path) -> None:
    fake_machine(tmp_path, {0: "0-1", 1: "2-3"}, free={0: GIB, 1: 0})
    assert [node.number for node in read(tmp_path).nodes] == [0]


@pytest.mark.parametrize("text", ["150000 100000", "max 100000", None])
def test_the_quota_of_a_container(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    expected = 1.5 if text and text[0] == "1" else None
    assert cpu_quota(tmp_path) == expected == read(tmp_path).quota


def test_a_system_without_nodes(tmp_path: Path) -> None:
    assert read(tmp_path) == Topology((), None)


@pytest.mark.skipif(not Path("/sys/devices/system/node/node0").exists(), reason="this system tells no memory nodes")
def test_this_machine() -> None:
    found = read_topology()
    assert found.nodes
    cpus = [cpu for node in found.nodes for cpu in node.cpus]
    # the others are of nodes that have no memory, or whose memory is forbidden
    assert cpus
    assert len(cpus) == len(set(cpus) & os.sched_getaffinity(0))
    assert all(node.free > 0 for node in found.nodes)
