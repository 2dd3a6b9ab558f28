"""Slow: the simulation beside the real engine, on this machine: with the bundled model, and with `mid`, which is larger
than the caches. DSV4_MID: a folder that `python -m benchmarks.sparse_folder mid` made; else one is made (2.1 GB)."""

import os
from pathlib import Path

import pytest

from benchmarks.sparse_folder import write_random
from dsv4.api.loading import load
from dsv4.simulate.cluster import Offered
from dsv4.simulate.compare import compare
from dsv4.workload.kinds import Workload
from tests.conftest import ROOT

AGENTS = Workload("agent", input=120, output=40, shared=400, turns=4, tool=80)
SHORT_AGENTS = Workload("agent", input=60, output=24, shared=200, turns=3, tool=40)


@pytest.fixture(scope="module")
def mid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if made := os.environ.get("DSV4_MID"):
        return Path(made)
    folder = tmp_path_factory.mktemp("capacity") / "mid"
    write_random("mid", folder)
    return folder


def check_within_fifteen_percent(folder: Path, offered: Offered, *, sequences: int, slowdown: float | None) -> None:
    """Of the processor time of the real run, and so of its rates; hits are equal."""
    model = load(folder, threads=1, draft="none", sequences=sequences, context_length=3072, slowdown=slowdown)
    found = compare(model.engine, offered, print)
    print("\n".join(found.lines()))
    assert found.simulated.hit_rate == found.real.hit_rate
    assert found.simulated.output_rate == pytest.approx(found.real.output_rate, rel=0.15)
    assert found.simulated.ttft["mean"] == pytest.approx(found.real.ttft["mean"], rel=0.15)
    assert found.simulated.itl["mean"] == pytest.approx(found.real.itl["mean"], rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("users", "slowdown"), [(1, None), (6, None), (6, 2.0)])
def test_within_fifteen_percent(users: int, slowdown: float | None) -> None:
    offered = Offered(AGENTS, users=users, requests=48, seed=5)
    check_within_fifteen_percent(ROOT / "models" / "nano", offered, sequences=8, slowdown=slowdown)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*stand for no text:UserWarning")  # its tokenizer is the bundled model's
@pytest.mark.parametrize(("users", "slowdown"), [(1, None), (4, None), (4, 2.0)])
def test_within_fifteen_percent_where_weights_come_from_memory(mid: Path, users: int, slowdown: float | None) -> None:
    offered = Offered(SHORT_AGENTS, users=users, requests=24, seed=5)
    check_within_fifteen_percent(mid, offered, sequences=4, slowdown=slowdown)
