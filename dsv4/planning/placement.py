"""Where threads run and where weights lie on a machine with several memory nodes (NUMA). Arithmetic only.

A thread that reads memory of another node reads it slower. So each thread stays on one node; the routed experts lie on
the nodes in turn, and threads compute with those of their own node first; every page of the other weights, which all
threads read, lies on the next node.
"""

from dataclasses import dataclass
from typing import Any

from dsv4.config.numa import NumaChoice, check_numa
from dsv4.files import counted, size_text
from dsv4.kernels import native
from dsv4.kernels.native.places import ThreadPlaces
from dsv4.planning.plan import EnginePlan
from dsv4.planning.topology import MemoryNode, Topology

RESERVE = 0.1  # of a node's free memory: not for weights


@dataclass(frozen=True, slots=True)
class Placement:
    """threads: where they run; None = wherever the system puts them. nodes: those that weights are put on, by the
    system's numbers; none = weights stay where they are. why: all of it for people."""

    why: str
    threads: ThreadPlaces | None = None
    nodes: tuple[int, ...] = ()

    @property
    def experts(self) -> bool:
        """Whether each routed expert lies on one of the nodes."""
        return self.threads is not None and self.threads.experts

    def to_dict(self) -> dict[str, Any]:
        """For JSON output."""
        cpus = [] if self.threads is None else list(map(list, self.threads.cpus))
        return {"why": self.why, "nodes": list(self.nodes), "cpus": cpus, "experts_interleaved": self.experts}


def place(plan: EnginePlan, topology: Topology, choice: NumaChoice, threads: int) -> Placement:
    """The placement of a planned model with this many threads. Raises ValueError for an unknown choice."""
    check_numa(choice)
    w = plan.weights
    if choice != "off" and plan.device != "cpu":
        return Placement(f"the model computes on {plan.device}: nothing to place")
    found = place_bytes(topology, choice, threads, None if plan.streamed else plan.experts, w.mapped + w.made)
    # NOTE: asked last, because it may compile the kernels, which a machine with one node does not need for its plan
    if found.threads is not None and not native.available():
        return Placement("needs the native kernels: nothing is placed")
    return found


def place_bytes(topology: Topology, choice: NumaChoice, threads: int, experts: int | None, others: int) -> Placement:
    """The placement of so many bytes of routed experts (None: they are read from disk) and of other weights.

    auto: nothing on a machine with one node. interleave: there too threads are pinned.
    """
    if choice == "off":
        return Placement("off: threads and weights stay where the system puts them")
    nodes = tuple(node for node in topology.nodes if node.cpus)
    count = counted(len(nodes), "node") if nodes else "the system tells no memory nodes"
    if not nodes or (len(nodes) == 1 and choice == "auto"):
        return Placement(f"{count}: nothing to place")
    reason = _unpinnable(nodes, topology.quota, threads)
    if reason:
        return Placement(f"{count}, {reason}: nothing is placed")
    shares = _shares(nodes, threads)
    told = ", ".join(f"{share} on node {node.number}" for node, share in zip(nodes, shares, strict=True))
    pinned = f"{count}, {counted(threads, 'thread')} pinned ({told})"
    if len(nodes) == 1:
        return Placement(f"{pinned}; no weights to place", _places(nodes, shares, experts=False))
    share = -(-((experts or 0) + others) // len(nodes))
    short = [node for node in nodes if share > (1 - RESERVE) * node.free]
    if short:
        text = f"weights are left where they lie: node {short[0].number} has {size_text(short[0].free)} free for "
        return Placement(f"{pinned}; {text}{size_text(share)}", _places(nodes, shares, experts=False))
    how = "experts are read from disk, " if experts is None else "experts interleaved by expert, "
    made = _places(nodes, shares, experts=experts is not None)
    return Placement(f"{pinned}; {how}other weights by page", made, tuple(node.number for node in nodes))


def nodes_text(topology: Topology) -> str:
    """The nodes of a machine for people."""
    if len(topology.nodes) < 2:
        return place_bytes(topology, "auto", 1, 0, 0).why
    told = (
        f"node {node.number} with {counted(len(node.cpus), 'processor')} and {size_text(node.free)} free"
        for node in topology.nodes
    )
    return f"{len(topology.nodes)} nodes: {', '.join(told)}; `dsv4 plan` tells where a model is placed"


def _unpinnable(nodes: tuple[MemoryNode, ...], quota: float | None, threads: int) -> str:
    """Why threads have no places of their own; empty if they have."""
    cpus = sum(len(node.cpus) for node in nodes)
    if threads < len(nodes):
        return f"{counted(threads, 'thread')}, fewer than nodes"
    if threads > cpus:
        return f"{threads} threads for {counted(cpus, 'processor')}"
    if quota is not None and threads > quota:
        return f"{counted(threads, 'thread')} under the container's quota of {quota:g} processors"
    return ""


def _shares(nodes: tuple[MemoryNode, ...], threads: int) -> list[int]:
    """Threads of each node: one, and the others by its further processors."""
    more, rest = [len(node.cpus) - 1 for node in nodes], threads - len(nodes)
    total = sum(more) or 1
    shares = [1 + rest * m // total for m in more]
    by_remainder = sorted(range(len(nodes)), key=lambda n: (-(rest * more[n] % total), n))
    for n in by_remainder[: threads - sum(shares)]:
        shares[n] += 1
    return shares


def _places(nodes: tuple[MemoryNode, ...], shares: list[int], *, experts: bool) -> ThreadPlaces:
    """The threads of all nodes in turn, so that the first ones are on all nodes."""
    places = [
        (rank, n, cpus)
        for n, (node, count) in enumerate(zip(nodes, shares, strict=True))
        for rank, cpus in enumerate(_cpus(node, count))
    ]
    places.sort(key=lambda place: place[:2])
    return ThreadPlaces(tuple(cpus for *_, cpus in places), tuple(n for _, n, _ in places), len(nodes), experts)


def _cpus(node: MemoryNode, threads: int) -> list[tuple[int, ...]]:
    """Where each of a node's threads may run: on a core of its own if the threads fill all cores, on a processor of its
    own if they fill those, else on the whole node, because other programs may be pinned to the same part of it."""
    if threads == len(node.cores):
        return list(node.cores)
    if threads == len(node.cpus):
        return [(cpu,) for cpu in node.cpus]
    return [node.cpus] * threads
