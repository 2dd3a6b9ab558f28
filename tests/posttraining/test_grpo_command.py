"""`dsv4 grpo` as people run it: a process that is killed goes on as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT

RECIPE = """
name = "small"
init = "models/nano"
steps = 4
save_seconds = 0
[prompts]
path = "tests.posttraining.runs:prompt"
[environment]
path = "tests.posttraining.runs:environment"
[lr]
peak = 1e-4
[efforts.high]
tokens = 12
window = 6
slope = 0.2
[rollouts]
prompts = 3
group = 3
context = 64
[kl]
beta = 0.001
[held_out]
path = "tests.posttraining.runs:prompt"
every = 2
prompts = 3
[optimizer]
kind = "adamw"
"""


def command(folder: Path, *more: str) -> list[str]:
    recipe = folder.parent / "small.toml"
    recipe.write_text(RECIPE)
    flags = ("--folder", str(folder), "--live", "-1", "--threads", "1", "--export", "fp32")
    return [sys.executable, "-m", "dsv4.cli", "grpo", str(recipe), *flags, *more]


def lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if not name.endswith(("seconds", "per_second"))}
        for line in lines(folder)
    ]


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_killed_run_is_the_run_that_was_not(asynchronous: str, tmp_path: Path) -> None:
    change = ("--set", f"rollouts.asynchronous={asynchronous}")
    whole = subprocess.run(command(tmp_path / "whole", *change), cwd=ROOT, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert "model: " in whole.stderr
    cut = tmp_path / "cut"
    process = subprocess.Popen(command(cut, *change), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(lines(cut)) < 2 and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (cut / "model").exists()
    again = subprocess.run(command(cut, *change), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "step 0 of 4" not in again.stderr  # it did go on
    assert numbers(cut) == numbers(tmp_path / "whole")
    assert [line["step"] for line in lines(cut)] == [0, 1, 2, 3]
    assert "held_out_reward" in lines(cut)[1]
    assert lines(cut)[0]["samples"][0]["answer"]
    for name in os.listdir(cut / "model"):
        if name.endswith(".safetensors"):
            one, other = load_file(cut / "model" / name), load_file(tmp_path / "whole" / "model" / name)
            assert all(one[key].equal(other[key]) for key in one)


def test_mistakes_are_told_before_anything_is_made(tmp_path: Path) -> None:
    for change, message in (
        ("lr.shape=linear", "lr.shape must be 'constant' or 'cosine', got 'linear'"),
        ("init=nowhere", "nowhere"),
        ("prompts.path=nothing:none", "prompts: path 'nothing:none' is no module:function"),
        ("efforts={max={tokens=4}}", "efforts.high is missing"),
        ("rollouts.group=1", "rollouts.group must be at least 2, got 1"),
    ):
        made = subprocess.run(command(tmp_path / "run", "--set", change), cwd=ROOT, capture_output=True, text=True)
        assert made.returncode == 1
        assert message in made.stderr, made.stderr
        assert "Traceback" not in made.stderr
        assert not (tmp_path / "run").exists()
