"""`dsv4 doctor` and `dsv4 plan` as commands."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dsv4.cli import doctor_kernels
from dsv4.cli.doctor import doctor
from dsv4.cli.doctor_advice import advice
from dsv4.cli.doctor_machine import USES, cpu_quota
from dsv4.cli.engine_flags import EngineFlags
from dsv4.cli.plan import plan
from dsv4.kernels import native
from dsv4.planning import rates, topology
from dsv4.planning.topology import MemoryNode, Topology
from tests.conftest import ROOT

GOOD: dict[str, Any] = {
    "machine": {"threads": 4, "usable_cores": 4, "cores": 4, "load": 0.5},
    "kernels": {"available": True, "compiler": "/usr/bin/c++", "isa": "avx2", "best_isa": "avx2"},
    "gpu": {"driver": False, "devices": []},
    "rates": {"memory": 1e10, "disk": None, "elsewhere": False},
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.001)
    monkeypatch.setattr(rates, "MEMORY_BYTES", 1 << 20)


def changed(part: str, **values: Any) -> dict[str, Any]:
    return {**GOOD, part: {**GOOD[part], **values}}


def test_a_good_machine_gets_no_advice() -> None:
    assert advice(GOOD) == []


@pytest.mark.parametrize(
    ("part", "values", "told"),
    [
        ("kernels", {"available": False, "compiler": "none: no C++ compiler"}, "install a C++ compiler"),
        ("kernels", {"isa": "portable"}, "DSV4_ISA=portable is set, and this machine has avx2"),
        ("machine", {"threads": 1}, "torch uses 1 of 4 cores"),
        ("machine", {"threads": 8}, "torch uses 8 threads on 4 cores"),
        ("machine", {"load": 19.0}, "other programs keep the cores busy (load 19.0 on 4 cores)"),
        ("gpu", {"driver": True}, "this torch has no CUDA"),
        ("rates", {"disk": 2e8}, "the disk of this model is slow"),
        ("rates", {"disk": 2e8, "elsewhere": True}, "the disk on which torch is installed is slow"),
    ],
)
def test_what_would_be_faster(part: str, values: dict[str, Any], told: str) -> None:
    (line,) = advice(changed(part, **values))
    assert told in line


@pytest.mark.parametrize(("text", "expected"), [("150000 100000", 1.5), ("max 100000", None), (None, None)])
def test_a_containers_share_of_the_processors(tmp_path: Path, text: str | None, expected: float | None) -> None:
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path) == expected


def test_the_use_of_every_extra_is_told() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(USES) == set(project["optional-dependencies"])


def test_the_report_names_the_kernels_that_run(capsys: pytest.CaptureFixture[str]) -> None:
    doctor(json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    ran = found["kernels"]["runs"]["serving, released weights (FP8 and FP4)"]
    expected = "native" if native.available() else "reference"
    assert any(line.startswith(f"linear: {expected}, ") for line in ran)
    trained = found["kernels"]["runs"]["training, float32"]
    assert any(line.startswith("sparse_attention: ") for line in trained)
    assert found["machine"]["free"] > 0
    assert "node" in found["machine"]["numa"]


def test_something_broken_is_the_exit_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_kernels, "CLOSE", -1.0)
    with pytest.raises(SystemExit) as ended:
        doctor()
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "problems:\n  - the kernels' logits differ from their definition" in out
    assert "\nkernels    " in out
    assert "\nnuma       " in out


def test_plan_of_a_model_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    plan("flash", free="24GiB")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model    flash, 148.65 GiB in 69,187 tensors (release layout)"
    assert lines[1].startswith("mode     release: ")
    plan("flash", free="24GiB", json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["free"] == 24 * 2**30
    assert found["mode"] == "release"
    assert found["peak"] <= found["free"]
    assert found["rates"]["elsewhere"]
    if found["rates"]["disk"] is not None:  # the speed of a model is told before it is fetched
        assert found["most_tokens_per_second"] > 0
        assert "where torch is installed; the model may come to lie on another" in lines[-1]
    with pytest.raises(ValueError, match="--mode auto needs at least"):
        plan("pro", free="24GiB", engine=EngineFlags(mode="fp32"))
    with pytest.raises(ValueError, match="--free must be a size"):
        plan(free="much")


def test_plan_of_the_final_weights_before_they_are_here(capsys: pytest.CaptureFixture[str]) -> None:
    for name, tensors in (("flash-0731", "155.42 GiB in 72,317"), ("pro-0813", "831.42 GiB in 149,782")):
        plan(name, free="64GiB", engine=EngineFlags(draft="head"))
        with_head = capsys.readouterr().out.splitlines()
        assert with_head[0] == f"model    {name}, {tensors} tensors (release layout)"
        plan(name, free="64GiB")
        assert capsys.readouterr().out.splitlines()[0] != with_head[0]  # the draft head is not loaded


def test_plan_tells_where_a_model_is_placed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = tuple(MemoryNode(n, ((2 * n,), (2 * n + 1,)), 2**40) for n in (0, 1))
    monkeypatch.setattr(topology, "read_topology", lambda: Topology(nodes))
    plan(engine=EngineFlags(threads=4))
    placed = (
        "2 nodes, 4 threads pinned (2 on node 0, 2 on node 1); experts interleaved by expert, other weights by page"
    )
    expected = placed if native.available() else "needs the native kernels: nothing is placed"
    assert f"numa     {expected}" in capsys.readouterr().out.splitlines()
    plan(engine=EngineFlags(threads=4, numa="off"), json=True)
    found = json.loads(capsys.readouterr().out)["numa"]
    assert found["why"] == "off: threads and weights stay where the system puts them"
    assert found["cpus"] == found["nodes"] == []
    monkeypatch.setattr(topology, "read_topology", lambda: Topology(nodes[:1]))
    plan()
    out = capsys.readouterr().out
    assert "numa     1 node: nothing to place" in out.splitlines()


def test_plan_of_the_bundled_model(capsys: pytest.CaptureFixture[str]) -> None:
    plan(json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["expert_memory"] is None
    assert not found["streamed"]
    assert found["most_tokens_per_second"] > 0
