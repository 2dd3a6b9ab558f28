"""Where threads run and which memory node (NUMA) holds what: the part of a placement that native code is given."""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass

from dsv4.kernels import native


@dataclass(frozen=True, slots=True)
class ThreadPlaces:
    """Where the threads of a step run, the calling thread first: thread t on one of the processors cpus[t], near memory
    node number near[t] of `nodes`. Further threads run anywhere. experts: the routed experts of a layer lie on the
    nodes in turn (`node_of_expert`), so a thread takes work with those near it first."""

    cpus: tuple[tuple[int, ...], ...]
    near: tuple[int, ...]
    nodes: int
    experts: bool = False

    def __post_init__(self) -> None:
        if len(self.cpus) != len(self.near) or not all(self.cpus):
            raise ValueError("cpus must have an entry for each thread, with a processor in it, as near has")
        if not all(0 <= node < self.nodes for node in self.near):
            raise ValueError(f"near must be in [0, {self.nodes}), got {self.near}")


def node_of_expert(layer: int, expert: int, nodes: int) -> int:
    """Which of `nodes` memory nodes holds a routed expert. Layers begin at different nodes, because the number of
    experts may be no multiple of the nodes."""
    return (layer + expert) % nodes


def place_pages(address: int, size: int, nodes: Sequence[int]) -> int:
    """Read memory of this process and move its pages to memory nodes of the system: the page at address a belongs on
    nodes[a / page size % len(nodes)]. Returns the bytes of pages that lie elsewhere in the end. Raises OSError with the
    system's reason where it refuses."""
    arguments = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    place = native.function("dsv4_place_pages", arguments, ctypes.c_int)
    numbers, elsewhere = (ctypes.c_int64 * len(nodes))(*nodes), ctypes.c_int64()
    code = place(address, size, numbers, len(nodes), ctypes.byref(elsewhere))
    if code:
        raise OSError(code, os.strerror(code))
    return elsewhere.value
