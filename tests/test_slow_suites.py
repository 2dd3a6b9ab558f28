"""The list of slow suites: complete, and read from nothing but what pytest says."""

import subprocess
import sys
from typing import Any

import pytest

from tests import slow_suites
from tests.conftest import ROOT
from tests.slow_suites import SUITES, Outcome, Suite, chosen, main, table

SLOW = ("pytest.mark." + "slow", "= BROWSER_" + "MARKS")  # tests/web/browsers.py has the second


def test_every_slow_test_is_in_one_suite() -> None:
    marked = {
        file.relative_to(ROOT / "tests").as_posix()
        for file in (ROOT / "tests").rglob("test_*.py")
        if any(mark in file.read_text(encoding="utf-8") for mark in SLOW)
    }
    assert marked == {file for suite in SUITES for file in suite.files}
    assert sum(len(suite.files) for suite in SUITES) == len(marked)


def test_the_documentation_has_each_suite() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert not [suite.name for suite in SUITES if f"| {suite.name} |" not in text]


def test_suites_by_name() -> None:
    assert chosen([]) == list(SUITES)
    assert [suite.name for suite in chosen(["arm64", "soak"])] == ["arm64", "soak"]
    with pytest.raises(ValueError, match="suite must be one of soak, kills"):
        chosen(["soka"])
    assert main(["soka"]) == 2


def test_a_failure_does_not_end_the_rest(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    ends = {"soak": (0, "6 passed"), "load": (1, "1 failed, 2 passed"), "arm64": (0, "2 skipped")}

    def run(suite: Suite) -> Outcome:
        return Outcome(suite, *ends[suite.name], seconds=61.4, processor=90.2, memory=3 << 29)

    monkeypatch.setattr(slow_suites, "run", run)
    monkeypatch.setattr(slow_suites.signal, "signal", lambda *_: None)
    assert main(["load", "soak", "arm64"]) == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "load   FAILED       61 s      90 s cpu    1.5 GiB  1 failed, 2 passed",
        "soak   passed       61 s      90 s cpu    1.5 GiB  6 passed",
        "arm64  skipped      61 s      90 s cpu    1.5 GiB  2 skipped",
    ]
    assert main(["soak", "arm64"]) == 0


def test_what_pytest_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    started = subprocess.Popen
    code = "held = bytearray(1 << 28); print('.F [100%]')\n"
    code += "print('= 1 failed, 3 passed, 2 warnings in 4.05s (0:00:04) ='); raise SystemExit(1)"
    monkeypatch.setattr(
        slow_suites.subprocess, "Popen", lambda command, **options: started([sys.executable, "-c", code], **options)
    )
    outcome = slow_suites.run(SUITES[0])
    assert (outcome.status, outcome.counted, outcome.result) == (1, "1 failed, 3 passed, 2 warnings", "FAILED")
    assert outcome.memory > 1 << 28
    assert outcome.processor > 0
    assert table([outcome]).startswith("soak  FAILED")
