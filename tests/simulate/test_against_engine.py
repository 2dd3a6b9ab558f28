"""Slow: the simulation beside the real engine with the bundled model, on this machine."""

import pytest

from dsv4.api.loading import load
from dsv4.simulate.cluster import Offered
from dsv4.simulate.compare import compare
from dsv4.workload.kinds import Workload
from tests.conftest import ROOT

AGENTS = Workload("agent", input=120, output=40, shared=400, turns=4, tool=80)


@pytest.mark.slow
@pytest.mark.parametrize(("users", "slowdown"), [(1, None), (6, None), (6, 2.0)])
def test_within_fifteen_percent(users: int, slowdown: float | None) -> None:
    """Of the processor time of the real run, and so of its rates; hits are equal."""
    sizes = {"sequences": 8, "context_length": 3072, "slowdown": slowdown}
    model = load(ROOT / "models" / "nano", threads=1, draft="none", **sizes)
    found = compare(model.engine, Offered(AGENTS, users=users, requests=48, seed=5), print)
    print("\n".join(found.lines()))
    assert found.simulated.hit_rate == found.real.hit_rate
    assert found.simulated.output_rate == pytest.approx(found.real.output_rate, rel=0.15)
    assert found.simulated.ttft["mean"] == pytest.approx(found.real.ttft["mean"], rel=0.15)
    assert found.simulated.itl["mean"] == pytest.approx(found.real.itl["mean"], rel=0.15)
