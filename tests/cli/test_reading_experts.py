"""Who waits for a step that reads experts sees how far it is."""

import threading
import time
from collections.abc import Iterator

import pytest

from dsv4.cli import reading_experts
from dsv4.cli.reading_experts import in_log, reading_told, until_first
from dsv4.kernels.moe import residency
from dsv4.kernels.moe.residency import ExpertCounts

IDLE = ExpertCounts(0, 5, 5, 5, 0, 0)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[ExpertCounts]:
    """What the native code says; a test changes the only entry."""
    said = [IDLE]
    monkeypatch.setattr(residency, "expert_counts", lambda: said[0])
    monkeypatch.setattr(reading_experts, "PATIENCE", 0.0)
    monkeypatch.setattr(reading_experts, "POLLED", 0.001)
    return said


def wait_for(condition: "threading.Event") -> None:
    assert condition.wait(10)


def test_the_percentage_of_the_step_is_told_until_it_ends(running: list[ExpertCounts]) -> None:
    told: list[int | None] = []
    seen = {13: threading.Event(), None: threading.Event()}

    def say(percent: int | None) -> None:
        told.append(percent)
        if percent in seen:
            seen[percent].set()

    with reading_told(say):
        running[0] = ExpertCounts(10, 5, 5, 5, 2, 43)
        while not told:
            time.sleep(0.001)
        running[0] = ExpertCounts(10, 5, 5, 5, 6, 43)
        wait_for(seen[13])
        running[0] = IDLE
        wait_for(seen[None])
    assert list(dict.fromkeys(told)) == [4, 13, None]


def test_a_model_without_a_budget_says_nothing(running: list[ExpertCounts]) -> None:
    running[0] = ExpertCounts(0, 0, 0, 0, 7, 43)
    told: list[int | None] = []
    with reading_told(told.append):
        time.sleep(0.05)
    assert told == []


def test_a_short_step_says_nothing(running: list[ExpertCounts], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_experts, "PATIENCE", 60.0)
    running[0] = ExpertCounts(10, 5, 5, 5, 6, 43)
    told: list[int | None] = []
    with reading_told(told.append):
        time.sleep(0.05)
    assert told == []


def test_an_answer_is_preceded_by_its_progress(running: list[ExpertCounts], capsys: pytest.CaptureFixture[str]) -> None:
    err: list[str] = []

    def pieces() -> Iterator[str]:
        running[0] = ExpertCounts(10, 5, 5, 5, 15, 48)
        while not err:
            err.extend(capsys.readouterr().err.splitlines())
        running[0] = IDLE
        yield "one"
        yield "two"

    assert list(until_first(pieces())) == ["one", "two"]
    assert err == ["reading experts 31 %"]
    assert list(until_first(iter([]))) == []


def test_a_server_logs_it(capsys: pytest.CaptureFixture[str]) -> None:
    say = in_log()
    say(31)
    say(32)  # the next line comes seconds later
    say(None)
    (line,) = capsys.readouterr().err.splitlines()
    assert '"event": "reading_experts"' in line
    assert '"percent": 31' in line
