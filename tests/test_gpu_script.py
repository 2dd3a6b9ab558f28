"""The script for cards runs here too, in its smallest form, and goes on after a check that fails."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu


def test_every_check_runs_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--small", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert report["failed"] == {}
    assert report["wrong"] == []
    assert {row["check"].replace(" ", "_") for row in report["rows"]} == {check.__name__ for check in gpu.CHECKS}
    exact = [
        row for row in report["rows"] if row["check"] in ("formats", "texts", "training") and row["bound"] is not None
    ]
    assert [row["value"] for row in exact] == [0.0] * len(exact)  # the CPU equals itself
    assert "wrong: none; failed: none" in capsys.readouterr().out


def test_a_failing_check_is_told_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setting: gpu.Setting) -> gpu.Rows:
        yield gpu.Row("broken", "before", 1.0)
        raise RuntimeError("no kernel image is available")

    def above(setting: gpu.Setting) -> gpu.Rows:
        yield gpu.Row("above", "a difference", 0.2, "", 0.1)

    monkeypatch.setattr(gpu, "CHECKS", (broken, above))
    assert gpu.main(["--device", "cpu", "--small", "--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert "no kernel image" in report["failed"]["broken"]
    assert report["wrong"] == ["above: a difference"]
    assert len(report["rows"]) == 2
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path), "--seconds", "-1"]) == 1
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert report["failed"] == {"broken": "not run: the time was over", "above": "not run: the time was over"}
