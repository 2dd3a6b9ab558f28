"""A placement put into effect: threads are tried on their processors, and weights are moved to their memory nodes.

What the system refuses is told in one line, and the model runs without it: results do not depend on it.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from dsv4.files import size_text
from dsv4.kernels.native.places import ThreadPlaces, node_of_expert, place_pages
from dsv4.model.layers import walk
from dsv4.model.transformer import Transformer
from dsv4.planning.placement import Placement

Put = Callable[[int, int, Sequence[int]], int]
Pin = Callable[[tuple[int, ...]], None]
_Piece = tuple[int, int, tuple[int, ...]]  # address, bytes, nodes


def pin_this_thread(cpus: tuple[int, ...]) -> None:
    """Raises OSError where the system refuses."""
    os.sched_setaffinity(0, cpus)


def settle(
    model: Transformer,
    placement: Placement,
    tell: Callable[[str], None],
    *,
    put: Put = place_pages,
    pin: Pin = pin_this_thread,
) -> ThreadPlaces | None:
    """Move the weights of a model where they belong; returns where the threads of its steps run. put, pin: the calls to
    the system."""
    places = placement.threads
    if places is None:
        return None
    refused = _refusal_of_pins(places, pin)
    if refused:
        tell(f"numa: the system does not let threads be pinned ({refused}): nothing is placed")
        return None
    if not placement.nodes:
        return places
    try:
        elsewhere, total = _put_weights(model, placement, put)
    except OSError as error:
        tell(f"numa: the system does not let memory be placed ({error.strerror}): weights stay where they are")
        return replace(places, experts=False)
    if elsewhere:
        tell(f"numa: {size_text(elsewhere)} of {size_text(total)} of weights lie on another node than planned")
    return places


def _refusal_of_pins(places: ThreadPlaces, pin: Pin) -> str:
    """Try all places in a thread that ends afterwards."""
    refused: list[str] = []

    def attempt() -> None:
        try:
            for cpus in dict.fromkeys(places.cpus):
                pin(cpus)
        except OSError as error:
            refused.append(error.strerror or str(error))

    thread = threading.Thread(target=attempt, name="places")
    thread.start()
    thread.join()
    return "".join(refused)


def _put_weights(model: Transformer, placement: Placement, put: Put) -> tuple[int, int]:
    """Bytes that lie elsewhere in the end, of how many. A thread for each node reads and moves its experts, and one the
    other weights."""
    lists: dict[tuple[int, ...], list[_Piece]] = {}
    total = 0
    for piece in pieces(model, placement):
        lists.setdefault(piece[2], []).append(piece)
        total += piece[1]
    over = threading.Event()

    def work(some: list[_Piece]) -> int:
        return sum(put(*piece) for piece in some if not over.is_set())

    with ThreadPoolExecutor(max(1, len(lists))) as pool:
        try:
            return sum(pool.map(work, lists.values())), total
        finally:
            over.set()  # after a refusal, or Ctrl-C, the other threads end early


def pieces(model: Transformer, placement: Placement) -> Iterator[_Piece]:
    """Memory of the model's weights, and the nodes that its pages belong on in turn."""
    routed: set[int] = set()
    for block in model.blocks:
        weights = block.ffn.weights()
        for e in range(weights.routed):
            home = placement.nodes[node_of_expert(block.spec.index, e, len(placement.nodes))]
            for address, size in weights.memory(e):
                routed.add(address)
                if placement.experts:
                    yield address, size, (home,)
    for _, module in walk(model):
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and tensor.is_contiguous() and tensor.data_ptr() not in routed:
                yield tensor.data_ptr(), tensor.numel() * tensor.element_size(), placement.nodes
