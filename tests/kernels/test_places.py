"""Pages of memory on memory nodes: calls to the system of this machine, whose nodes are real."""

import errno
import mmap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsv4.kernels import native
from dsv4.kernels.native.places import ThreadPlaces, node_of_expert, place_pages
from dsv4.planning.topology import read_topology

PAGE = mmap.PAGESIZE
NODES = [node.number for node in read_topology().nodes]
NO_NODE = 1000


def memory(pages: int) -> Tensor:
    return torch.arange(pages * PAGE, dtype=torch.int32).to(torch.uint8)


def refused() -> str:
    """Why memory cannot be placed here; empty if it can."""
    if not native.available():
        return f"native kernels: {native.why_not()}"
    if not NODES:
        return "the system tells no memory nodes"
    some = memory(1)
    try:
        place_pages(some.data_ptr(), PAGE, NODES[:1])
    except OSError as error:
        return f"the system refuses: {error.strerror}"
    return ""


needs_nodes = pytest.mark.skipif(bool(refused()), reason=refused())


@needs_nodes
@pytest.mark.parametrize("nodes", [NODES[:1], NODES, NODES * 2])
def test_pages_lie_where_they_belong_and_keep_their_values(nodes: list[int]) -> None:
    some = memory(5000)  # more pages than one call to the system takes
    before = some.clone()
    assert place_pages(some.data_ptr() + 100, some.numel() - 200, nodes) == 0
    assert torch.equal(some, before)


@needs_nodes
def test_pages_of_a_file_that_were_not_read_yet(tmp_path: Path) -> None:
    values = memory(20)
    file = tmp_path / "weights"
    file.write_bytes(values.numpy().tobytes())
    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    data = torch.frombuffer(mapped, dtype=torch.uint8)
    place_pages(data.data_ptr(), data.numel(), NODES)
    assert torch.equal(data, values)


@needs_nodes
def test_a_node_that_is_not_there_is_refused_by_the_system() -> None:
    some = memory(2)
    for nodes in ([NO_NODE], [-1], [2**40], []):
        with pytest.raises(OSError) as refusal:
            place_pages(some.data_ptr(), some.numel(), nodes)
        assert refusal.value.errno in (errno.EINVAL, errno.ENODEV)
    assert place_pages(some.data_ptr(), some.numel(), NODES) == 0


def test_experts_are_on_all_nodes_in_turn() -> None:
    homes = [[node_of_expert(layer, e, 2) for e in range(5)] for layer in range(2)]
    assert homes == [[0, 1, 0, 1, 0], [1, 0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("cpus", "near", "told"),
    [
        (((0,),), (0, 0), "cpus must"),
        (((0,), ()), (0, 0), "cpus must"),
        (((0,), (1,)), (0, 2), r"near must be in \[0, 2\)"),
    ],
)
def test_places_that_make_no_sense(cpus: tuple[tuple[int, ...], ...], near: tuple[int, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ThreadPlaces(cpus, near, 2)
