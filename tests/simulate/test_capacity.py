"""Estimates: the fit finds planted times, the roofline follows the arithmetic, clusters hold what they say."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsv4.cli.inspect import find_config
from dsv4.cli.simulate import ClusterFlags, simulate
from dsv4.cli.workload_flags import WorkloadFlags
from dsv4.config import AttentionKind
from dsv4.model.accounting import keys_read
from dsv4.planning.files import ModelFiles
from dsv4.simulate.cluster import lay_out
from dsv4.simulate.hardware import find_hardware, read_hardware
from dsv4.simulate.measure import TERMS, fit, terms_of
from dsv4.simulate.roofline import Assumptions, ClusterLayout, Roofline
from dsv4.simulate.shape import StepPart, StepShape, touched_experts
from dsv4.testing.tiny import tiny_config

FLASH = find_config("flash")[1]
EXACT = Assumptions(1.0, 1.0, 1.0, 0.0, 0.0, 0.0)


def step(*parts: tuple[int, int, int]) -> StepShape:
    return StepShape(tuple(StepPart(*part) for part in parts))


def test_the_fit_finds_planted_times() -> None:
    config, chance = tiny_config(), random.Random(0)
    planted = [4e-4, 2e-5, 3e-4, 2e-5, 1e-8, 2e-8, 1e-6, 1e-3]
    samples = []
    for _ in range(400):
        parts = [(chance.randrange(2000), 1, 1) for _ in range(chance.randrange(8))]
        parts += [(chance.randrange(500), chance.randrange(2, 300), chance.randrange(2)) for _ in range(not parts or 1)]
        shape = step(*parts)
        seconds = sum(a * b for a, b in zip(planted, terms_of(config, shape), strict=True))
        samples.append((shape, seconds * chance.uniform(0.98, 1.02)))
    samples += [(step((0, 1, 1)), 9.0)]  # another program held this one up
    found = fit(config, samples)
    assert found.error < 0.05
    assert min(found.seconds_of) >= 0
    for shape, seconds in samples[:50]:
        assert found.seconds(shape) == pytest.approx(seconds, rel=0.08)
    assert set(found.to_dict()["seconds"]) == set(TERMS)
    with pytest.raises(ValueError, match="samples must be at least 40 steps, got 3"):
        fit(config, samples[:3])


def test_the_fit_keeps_the_sum_of_uneven_times() -> None:
    """Steps are often slowed and never hastened; a rate follows from their mean."""
    config, chance = tiny_config(), random.Random(1)
    shapes = [step(*((chance.randrange(2000), 1, 1) for _ in range(chance.randrange(1, 8)))) for _ in range(400)]
    samples = [(shape, 1e-3 * len(shape.parts) * (1 + chance.expovariate(2))) for shape in shapes]
    found = fit(config, samples)
    assert sum(map(found.seconds, shapes)) == pytest.approx(sum(seconds for _, seconds in samples), rel=0.01)


@pytest.mark.parametrize("position", [0, 1, 127, 128, 5000, 1_000_000])
def test_keys_of_all_layers(position: int) -> None:
    entries = indexed = 0
    for layer in FLASH.layers:
        entries += min(position, FLASH.sliding_window)
        if layer.kind is AttentionKind.CSA:
            entries += min(FLASH.index_topk, position // layer.ratio)
            indexed += position // layer.ratio
        elif layer.kind is AttentionKind.HCA:
            entries += position // layer.ratio
    assert keys_read(FLASH, position) == (entries, indexed)


def test_touched_experts() -> None:
    assert touched_experts(256, 6, 1) == pytest.approx(6)
    assert touched_experts(256, 6, 64) == pytest.approx(256 * (1 - (250 / 256) ** 64))
    assert touched_experts(256, 6, 100_000) == pytest.approx(256)


def test_one_token_takes_as_long_as_its_bytes() -> None:
    device = replace(find_hardware("h200"), devices=1)
    layout = ClusterLayout(device, 1, 1, dense=8e9, experts=256e9)
    found = Roofline(FLASH, layout, EXACT).seconds(step((100, 1, 1)))
    rows = sum(a * b for a, b in zip(keys_read(FLASH, 100), (584, 68), strict=True))
    assert found == pytest.approx((8e9 + 6e9 + rows) / 4.8e12)
    half = Roofline(FLASH, layout, replace(EXACT, memory=0.5)).seconds(step((100, 1, 1)))
    assert half == pytest.approx(2 * found)


def test_a_prompt_takes_as_long_as_its_operations() -> None:
    device = replace(find_hardware("h200"), bandwidth=1e30)
    layout = ClusterLayout(device, 1, 1, dense=8e9, experts=256e9)
    one = Roofline(FLASH, layout, EXACT).seconds(step((0, 4096, 0)))
    two = Roofline(FLASH, layout, EXACT).seconds(step((0, 4096, 0), (0, 4096, 0)))
    assert two == pytest.approx(2 * one)
    assert 4096 * 26e9 < one * 1979e12 < 4096 * 60e9  # 26.5 GFLOP of linears and some attention a token


def test_traffic_of_experts() -> None:
    device = replace(find_hardware("h200"), bandwidth=1e30, fp8=1e30)
    shape = step((0, 1000, 0))
    pairs = 1000 * 6 * 43 * 3 * 4096
    near = Roofline(FLASH, ClusterLayout(device, 1, 8, 1.0, 1.0), EXACT).seconds(shape)
    far = Roofline(FLASH, ClusterLayout(device, 1, 32, 1.0, 1.0), EXACT).seconds(shape)
    assert near == pytest.approx(pairs * 7 / 8 / 450e9, rel=1e-3)
    assert far == pytest.approx(pairs * 24 / 32 / 50e9, rel=1e-3)
    shared = ClusterLayout(device, 8, 8, 1.0, 1.0)
    reduced = 2 * 7 / 8 * 2 * 43 * 1000 * 4096 * 2 / 450e9
    assert Roofline(FLASH, shared, EXACT).seconds(shape) == pytest.approx(reduced + near / 8, rel=1e-3)


def test_layouts_hold_the_weights() -> None:
    files = ModelFiles.of_config("flash", FLASH)
    layout = lay_out(files, find_hardware("h200"), 4)
    assert (layout.tensor, layout.expert, layout.engines) == (1, 8, 8)
    assert 140e9 < layout.experts + layout.dense < 170e9
    with pytest.raises(ValueError, match="nodes must be more than 1: a small has room"):
        lay_out(files, replace(find_hardware("h200"), name="small", devices=1), 1)
    with pytest.raises(
        ValueError, match=r"expert must be a multiple of the 2 devices .* divides the 32 devices, got 5"
    ):
        lay_out(files, find_hardware("h200"), 4, 2, 5)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    load = WorkloadFlags("agent", users=[2, 64], requests=4, turns=2, output=4, input=30, shared=100)
    simulate("flash", json=True, cluster=ClusterFlags(nodes=[1, 1000], price=2.0), load=load)
    found = json.loads(capsys.readouterr().out)["capacities"]
    assert [(one["nodes"], one["devices"], one["scale"]) for one in found] == [
        (1, 8, 2.0), (1, 8, 8.0), (1000, 8000, 2.0), (1000, 8000, 64.0),
    ]  # fmt: skip
    few, many = found[:2]
    assert many["output_rate"] > 3 * few["output_rate"]
    assert few["cost"] == pytest.approx(2 * few["device_hours"])
    assert few["engine"]["hit_rate"] > 0
    simulate("flash", load=load)
    said = capsys.readouterr().out
    assert "Not measured" in said
    assert "layer_seconds=2.5e-05" in said


def test_what_does_not_fit_is_told_beside_what_does(capsys: pytest.CaptureFixture[str]) -> None:
    load = WorkloadFlags("fixed", users=[2], requests=2, input=30, output=4)
    simulate(json=True, load=load)  # flash and pro on one node of h200, which cannot hold pro
    said = capsys.readouterr()
    assert [one["model"] for one in json.loads(said.out)["capacities"]] == ["flash"]
    assert "pro on 1 nodes is left out: nodes must be more than 1" in said.err
    with pytest.raises(ValueError, match=r"--nodes must be more than 1: .* pro needs"):
        simulate("pro", load=load)


def test_a_prompt_slows_other_answers_as_much_as_the_server_lets_it(capsys: pytest.CaptureFixture[str]) -> None:
    load = WorkloadFlags("fixed", rate=[20.0], requests=6, input=4_000, output=60)

    def longest(**flags: Any) -> tuple[float, float]:
        """The 99th percentile of the time between two tokens, and the mean to the first."""
        simulate("flash", json=True, cluster=ClusterFlags(tensor=8, **flags), load=load)
        engine = json.loads(capsys.readouterr().out)["capacities"][0]["engine"]
        return engine["itl"]["p99"], engine["ttft"]["mean"]

    limited, free = longest(), longest(slowdown=0.0)
    assert longest(slowdown=2.0) == limited, "as the server has it"
    assert limited[0] < free[0] / 2
    assert limited[1] > free[1]


def test_requests_of_a_trace_are_its_first_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trace.jsonl"
    rows = ({"timestamp": 100 * n, "input_length": 20, "output_length": 4, "hash_ids": []} for n in range(100))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = find_hardware("h200")
    assert one.devices == 8  # engines, among which the trace is dealt out

    def requests(**flags: Any) -> int:
        simulate("flash", json=True, load=WorkloadFlags(trace=file, **flags), cluster=ClusterFlags(tensor=8))
        return json.loads(capsys.readouterr().out)["capacities"][0]["engine"]["requests"]

    assert requests() == 100, "the whole trace, also where it is longer than a workload"
    assert requests(requests=7) == 7
    with pytest.raises(ValueError, match="--requests must be at least 1, got 0"):
        requests(requests=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"cluster": ClusterFlags(on="abacus")}, "--on must be one of b200, .*got 'abacus'"),
        ({"cluster": ClusterFlags(nodes=[0])}, r"--nodes must be in \[1, 1000\], got 0"),
        ({"cluster": ClusterFlags(nodes=[1, 1001])}, r"--nodes must be in \[1, 1000\], got 1001"),
        ({"cluster": ClusterFlags(slowdown=0.5)}, "--slowdown must be more than 1, or 0 for no limit, got 0.5"),
        ({"cluster": ClusterFlags(price=0.0)}, "--price must be more than 0"),
        ({"cluster": ClusterFlags(assume=["speed=1"])}, "--assume must be NAME=NUMBER with a name of compute"),
        ({"cluster": ClusterFlags(assume=["compute=2"])}, r"--assume compute must be in \(0, 1\], got 2"),
        (
            {"cluster": ClusterFlags(assume=["step_seconds=-1"])},
            "--assume step_seconds must be at least 0 and finite, got",
        ),
        ({"cluster": ClusterFlags(assume=["links=x"])}, "--assume must be NAME=NUMBER with a name of compute"),
        ({"load": WorkloadFlags(users=[0])}, "--users must be more than 0 and finite, got 0"),
        ({"load": WorkloadFlags(rate=[math.nan])}, "--rate must be more than 0 and finite, got nan"),
        ({"cluster": ClusterFlags(context=1000)}, "--context must be at least the"),
    ],
)
def test_mistakes_name_the_flag(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate("flash", **flags)  # type: ignore[arg-type]


def test_hardware_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    rows = "memory = 24\nbandwidth = 936\nfp8 = 71\ndevices = 4\nlink = 16\nnetwork = 3\n"
    file.write_text(f"[rtx3090]\n{rows}price = 0.25\n")
    device = find_hardware("rtx3090", file)
    assert (device.bandwidth, device.price, device.cpu) == (936e9, 0.25, False)
    for text, message in (
        ("[x]\nspeed = 3\n", "x has an unknown field speed"),
        ("[x]\nmemory = 3\n", "x lacks bandwidth"),
        (f"[x]\n{rows.replace('24', '0')}", "memory must be a number above 0"),
        (f"[x]\n{rows.replace('24', 'true')}", "memory must be a number above 0"),
        ("x = 1", "must be a table"),
        ("[", "is no TOML"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_hardware(file)
