"""`dsv4 pull` as a user runs it, with a kill in the middle; then the name works in other verbs."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv4.cli.pull import pull
from dsv4.cli.pull_progress import PullProgress, duration
from dsv4.hub.sources import HubError
from tests.conftest import ROOT
from tests.hub.small_hub import COMMIT, SmallHub

pytest.importorskip("huggingface_hub")
NANO = ROOT / "models" / "nano"
NAME = "own/Nano-V4"


@pytest.fixture
def nano_hub() -> Iterator[SmallHub]:
    files = {file.name: file.read_bytes() for file in NANO.iterdir()}
    with SmallHub({NAME: files}) as running:
        yield running


def environment(hub: SmallHub) -> dict[str, str]:
    return {**os.environ, "HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT)}


def run(hub: SmallHub, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dsv4.cli", *arguments]
    return subprocess.run(command, env=environment(hub), capture_output=True, text=True)


def test_a_killed_pull_goes_on_and_its_name_works_in_every_verb(nano_hub: SmallHub, caches: Path) -> None:
    nano_hub.seconds_per_mib = 20
    with subprocess.Popen([sys.executable, "-m", "dsv4.cli", "pull", NAME], env=environment(nano_hub)) as killed:
        while nano_hub.sent < 2 << 20 and killed.poll() is None:
            time.sleep(0.02)
        killed.kill()
    assert killed.returncode < 0
    kept = sum(file.stat().st_size for file in (caches / "hf" / "hub").rglob("*") if file.is_file())
    assert kept > 1 << 20
    refused = run(nano_hub, "check", NAME)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"dsv4: {NAME}: no such folder, and the model of that name was pulled only")
    nano_hub.seconds_per_mib, nano_hub.sent = 0.0, 0
    done = run(nano_hub, "pull", NAME)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder == caches / "hf" / "hub" / "models--own--Nano-V4" / "snapshots" / COMMIT
    assert f"`dsv4 chat {NAME}`, `dsv4 serve {NAME}`" in done.stderr
    assert nano_hub.sent < sum(file.stat().st_size for file in NANO.iterdir()) - (1 << 20)
    asked = run(nano_hub, "generate", NAME, "--prompt", "What is 17 + 25?", "--chat", "--temperature", "0")
    assert (asked.returncode, "42" in asked.stdout) == (0, True), asked.stderr


def test_mistakes_are_told_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"NAME must be one of flash, pro, .* or OWNER/NAME of a repository, got 'fl2'"
    ):
        pull("fl2")
    with pytest.raises(ValueError, match=r"NAME must be one of flash, .*, got nothing"):
        pull()
    with pytest.raises(ValueError, match=r"^file is not a folder"):
        pull(NAME, Path("file"))
    with pytest.raises(ValueError, match=r"--workers must be at least 1, got 0"):
        pull(NAME, workers=0)


def test_a_dry_run_fetches_nothing(
    nano_hub: SmallHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nano_hub.url)
    pull(NAME, dry_run=True)
    shown = capsys.readouterr()
    names = {line.split()[1] for line in shown.out.splitlines()}
    weights = {file.name for file in NANO.glob("*.safetensors")}
    assert weights | {"config.json", "tokenizer.json"} <= names
    assert "accuracy.json" not in names
    assert f"{NAME} at {COMMIT}: {len(names)} files, " in shown.err
    assert not nano_hub.asked("/resolve/")


def test_offline_a_model_that_is_here_is_enough(
    nano_hub: SmallHub, caches: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, so nothing is fetched"):
        pull(NAME)
    here = caches / "hf" / "hub" / "models--own--Nano-V4" / "snapshots" / COMMIT
    shutil.copytree(NANO, here)
    pull(NAME)
    assert capsys.readouterr().out == f"{here}\n"


def test_progress_is_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("dsv4.cli.pull_progress.time.monotonic", lambda: now[0])
    with PullProgress() as screen:
        screen.begin(100 << 30, 10 << 30)
        for _ in range(25):
            now[0] += 1
            screen.arrived(1 << 30)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "90.00 GiB to fetch, 10.00 GiB are here",
        "21.0% of 100.00 GiB  1,024.0 MiB/s, 1 min left",
        "32.0% of 100.00 GiB  1,024.0 MiB/s, 1 min left",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(9.9, "9 s"), (61, "1 min"), (3_599, "59 min"), (7_500, "2 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
