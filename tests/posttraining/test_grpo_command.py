"""`dsv4 grpo` as people run it: a process that is killed goes on as if it had not been."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.posttraining.killed_runs import killed_and_resumed, lines

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


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_killed_run_is_the_run_that_was_not(asynchronous: str, tmp_path: Path) -> None:
    change = ("--set", f"rollouts.asynchronous={asynchronous}")
    cut = tmp_path / "cut"
    killed_and_resumed(lambda folder: command(folder, *change), tmp_path)
    assert [line["step"] for line in lines(cut)] == [0, 1, 2, 3]
    assert "held_out_reward" in lines(cut)[1]
    assert lines(cut)[0]["samples"][0]["answer"]


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
