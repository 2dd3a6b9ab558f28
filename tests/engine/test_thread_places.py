"""Steps whose threads have places on the memory nodes of a fake machine: the same bits as without."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsv4.config.numa import NumaChoice
from dsv4.kernels import native
from dsv4.kernels.native.places import ThreadPlaces
from dsv4.model.transformer import Transformer
from dsv4.planning.placement import place_bytes
from dsv4.planning.topology import read_topology
from tests.engine.test_fused import Recorder, quantised, same, tiny
from tests.planning.fake_nodes import GIB, fake_machine

pytestmark = [
    pytest.mark.skipif(not native.available(), reason=f"no native kernels: {native.why_not()}"),
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no threads"),
]
THREADS = 2
LENGTHS = [70, 9, 1]  # of prompts: more than a step computes at once, and fewer than a tile has rows


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def places(folder: Path, nodes: int, choice: NumaChoice = "auto", experts: int | None = GIB) -> ThreadPlaces | None:
    """Of two threads on a machine with so many nodes, whose processors are those that exist here."""
    cpus = sorted(os.sched_getaffinity(0))
    topology = read_topology(fake_machine(folder, {n: str(cpus[-1 if n else 0]) for n in range(nodes)}), folder, folder)
    cores = topology.nodes[0].cores
    if nodes == 1 or len(cpus) == 1:  # both threads on one processor
        topology = replace(topology, nodes=tuple(replace(node, cores=cores * 2) for node in topology.nodes))
    return place_bytes(topology, choice, THREADS, experts, GIB).threads


def kept_to() -> dict[int, set[int]]:
    """The processors that each thread of this process is kept to."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            found[int(task.name)] = os.sched_getaffinity(int(task.name))
        except ProcessLookupError:  # it has ended
            continue
    return found


MODELS = {"fp32": lambda: tiny("fp32"), "release": lambda: quantised("release")}


@pytest.mark.parametrize("model", MODELS)
def test_every_plan_gives_the_same_bits(model: str, tmp_path: Path) -> None:
    made: Transformer = MODELS[model]()
    plain = Recorder(made, True).run(LENGTHS)
    plans = {
        "experts on two nodes": places(tmp_path / "a", 2),
        "experts from disk": places(tmp_path / "b", 2, experts=None),
        "one node, pinned": places(tmp_path / "c", 1, "interleave"),
    }
    assert [plan is not None and (plan.nodes, plan.experts) for plan in plans.values()] == [
        (2, True),
        (2, False),
        (1, False),
    ]
    for plan in plans.values():
        same(plain, Recorder(made, True, places=plan).run(LENGTHS))
    assert places(tmp_path / "d", 1) is None
    assert places(tmp_path / "e", 2, "off") is None


def test_the_caller_may_go_anywhere_after_a_step_and_its_helper_has_its_place(tmp_path: Path) -> None:
    anywhere = os.sched_getaffinity(0)
    if len(anywhere) < 2:
        pytest.skip("needs two processors")
    Recorder(tiny("fp32"), True).run([30])  # a helper of another test may have a place
    before = kept_to()
    plan = places(tmp_path, 2)
    assert plan is not None
    Recorder(tiny("fp32"), True, places=plan).run([30])
    assert os.sched_getaffinity(0) == anywhere
    place = set(plan.cpus[1])
    helpers = [thread for thread, cpus in kept_to().items() if cpus == place and before.get(thread) != place]
    assert len(helpers) == 1
    Recorder(tiny("fp32"), True).run([30])
    assert kept_to()[helpers[0]] == anywhere


def test_more_threads_than_places_and_fewer(tmp_path: Path) -> None:
    plan = places(tmp_path, 2)
    plain = Recorder(tiny("bf16"), True).run(LENGTHS)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        same(plain, Recorder(tiny("bf16"), True, places=plan).run(LENGTHS))


def test_processors_that_are_not_there_change_nothing() -> None:
    absent = max(os.sched_getaffinity(0)) + 500
    plan = ThreadPlaces(((absent,), (absent + 1,)), (0, 1), 2, experts=True)
    before = os.sched_getaffinity(0)
    same(Recorder(tiny("fp32"), True).run(LENGTHS), Recorder(tiny("fp32"), True, places=plan).run(LENGTHS))
    assert os.sched_getaffinity(0) == before
