"""Commands that are killed in the middle of a run and started again."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.conftest import ROOT


def lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if not name.endswith(("seconds", "per_second"))}
        for line in lines(folder)
    ]


def killed_and_resumed(command: Callable[[Path], list[str]], place: Path) -> None:
    """Run `command` in a folder without a break, and in another one with `kill -9` after two steps; both logs and
    models must be equal."""
    whole = subprocess.run(command(place / "whole"), cwd=ROOT, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert "model: " in whole.stderr
    cut = place / "cut"
    process = subprocess.Popen(command(cut), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(lines(cut)) < 2 and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (cut / "model").exists()
    again = subprocess.run(command(cut), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "step 0 of" not in again.stderr  # it did go on
    assert numbers(cut) == numbers(place / "whole")
    for name in os.listdir(cut / "model"):
        if name.endswith(".safetensors"):
            one, other = load_file(cut / "model" / name), load_file(place / "whole" / "model" / name)
            assert all(one[key].equal(other[key]) for key in one)
