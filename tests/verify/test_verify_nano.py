"""The bundled model behind `dsv4 serve` passes `dsv4 verify`, its own recorded answers included."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_bundled_model_passes(tmp_path: Path) -> None:
    fixtures, report, data = tmp_path / "nano.jsonl", tmp_path / "nano.html", tmp_path / "nano.json"
    verb = [sys.executable, "-m", "dsv4.cli", "verify", str(ROOT / "models" / "nano"), "--minutes", "120"]
    subprocess.run([*verb, "--record", str(fixtures)], check=True, cwd=ROOT)
    flags = ["--fixtures", str(fixtures), "--report", str(report), "--json", str(data)]
    done = subprocess.run([*verb, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    found = json.loads(data.read_text(encoding="utf-8"))
    assert found["faults"] == 0
    assert {result["outcome"] for result in found["results"]} == {"passed"}
    assert "No fault found" in report.read_text(encoding="utf-8")
