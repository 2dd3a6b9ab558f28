"""`dsv4 grpo` as people run it: a process that is killed goes on as if it had not been."""

import json
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsv4.cli.rollout_start import Options, run_recipe
from dsv4.encoding import Tokenizer
from dsv4.generation import FinishReason
from dsv4.posttraining.base_model import BaseModel
from dsv4.posttraining.chat import ChatEnvironment
from dsv4.posttraining.environment import Environment, Verdict
from dsv4.posttraining.grpo_run import GrpoRun
from dsv4.posttraining.recipe import GrpoRecipe
from dsv4.posttraining.verifiers import VERIFIERS
from dsv4.training import checks
from dsv4.training.settings import OptimizerSettings
from tests.cli.test_sft import run as sft
from tests.cli.test_sft import write_base, write_talks
from tests.conftest import ROOT
from tests.posttraining.killed_runs import killed_and_resumed, lines
from tests.posttraining.policies import SameVerdict

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
    change = ("--set", f"rollouts.asynchronous={asynchronous}", "--set", "environment.options.odd=true")
    change += ("--set", "selection={draws=3, again=0.4, low=0.0, high=1.0}")
    cut = tmp_path / "cut"
    killed_and_resumed(lambda folder: command(folder, *change), tmp_path)
    assert [line["step"] for line in lines(cut)] == [0, 1, 2, 3]
    assert "held_out_reward" in lines(cut)[1]
    assert lines(cut)[0]["samples"][0]["answer"]
    assert sum(line["redrawn"] for line in lines(cut)) > 0 < sum(line["asked_again"] for line in lines(cut))


def test_mistakes_are_told_before_anything_is_made(tmp_path: Path) -> None:
    for change, message in (
        ("lr.shape=linear", "lr.shape must be 'constant' or 'cosine', got 'linear'"),
        ("init=nowhere", "nowhere"),
        ("prompts.path=nothing:none", "prompts: path 'nothing:none' is no module:function"),
        ("efforts={max={tokens=4}}", "efforts.high is missing"),
        ("rollouts.group=1", "rollouts.group must be at least 2, got 1"),
        ("selection.draws=0", "selection.draws must be at least 1, got 0"),
        ("selection.again=1.5", "selection.again must be in [0, 1], got 1.5"),
        ("selection={low=0.9, high=0.1}", "selection.low must be at most selection.high, got 0.9 and 0.1"),
        ("rollouts.context=4", "leaves no room for an answer in rollouts.context = 4"),
        ("prompts.path=tests.posttraining.runs:environment", "runs:environment raised TypeError"),
        (
            "environment.path=tests.posttraining.runs:recipe",
            "environment: tests.posttraining.runs:recipe raised TypeError",
        ),
        ("environment={}", "task.verifier is missing; it has nothing"),
    ):
        made = subprocess.run(command(tmp_path / "run", "--set", change), cwd=ROOT, capture_output=True, text=True)
        assert made.returncode == 1
        assert message in made.stderr, made.stderr
        assert "Traceback" not in made.stderr
        assert not (tmp_path / "run").exists()


def test_a_run_does_not_write_into_a_model(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for folder, message in (
        (base / "run", "would write into the model it starts from"),
        (tmp_path / "other", "no run"),
    ):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "config.json").write_text("{}")
        with pytest.raises(ValueError, match=message):
            run(GrpoRecipe.from_dict({**tomllib.loads(RECIPE), "init": str(base)}), folder)
        assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["config.json"]
        assert not (base / "run").exists()


def test_the_folder_of_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    """In both directions, and before a state is put into another optimiser."""
    base, talks = write_base(tmp_path / "base"), write_talks(tmp_path / "talks.jsonl")
    recipe = GrpoRecipe.from_dict({**tomllib.loads(RECIPE), "init": str(base)})
    tune = ("--init", base, "--data", talks, "--export", "none", "--steps", "1")
    sft(*tune, "--folder", tmp_path / "sft", "--set", "optimizer.kind=muon")
    with pytest.raises(ValueError, match="sft holds a run of another kind, not one of grpo"):
        run(recipe, tmp_path / "sft")
    run(recipe, tmp_path / "grpo")
    with pytest.raises(ValueError, match="grpo holds a run of another kind, which learns from rollouts"):
        sft(*tune, "--folder", tmp_path / "grpo")
    with pytest.raises(
        ValueError,
        match=r"grpo was made with another recipe: optimizer\.kind differs \(it was 'adamw', now it is 'muon'\)",
    ):
        run(replace(recipe, optimizer=OptimizerSettings(kind="muon")), tmp_path / "grpo")


def run(recipe: GrpoRecipe, folder: Path, steps: int | None = 1) -> None:
    run_recipe(recipe, folder, Options(live=-1, track=None, export="none", steps=steps, threads=1), GrpoRun)


def unfair(tokenizer: Tokenizer, judged: bool) -> SameVerdict:
    """For recipes."""
    return SameVerdict(Verdict(1.0) if judged else Verdict(None, error="no judge"))


class Halves(SameVerdict):
    """Has no verdict on every second answer."""

    async def verdict(self, finish: FinishReason) -> Verdict:
        found = self.verdict_of_all
        self.verdict_of_all = Verdict(1.0) if found.error else Verdict(None, error="no judge")
        return found


def halves(tokenizer: Tokenizer) -> Halves:
    """For recipes."""
    return Halves(Verdict(1.0))


def both(tokenizer: Tokenizer) -> dict[str, Environment]:
    """For recipes: random prompts, and conversations."""
    return {"d": SameVerdict(Verdict(1.0)), "default": ChatEnvironment(tokenizer, VERIFIERS)}


def small(base: Path, **changes: Any) -> GrpoRecipe:
    raw = tomllib.loads(RECIPE) | {"init": str(base), "held_out": {}}
    raw["efforts"]["high"] = {"tokens": 12}
    return GrpoRecipe.from_dict({**raw, **changes})


def test_a_run_that_learns_nothing_says_so(tmp_path: Path, capsys: Any) -> None:
    base, path = write_base(tmp_path / "base"), f"{__name__}:unfair"
    equal = small(base, steps=2, environment={"path": path, "options": {"judged": True}})
    run(equal, tmp_path / "equal", steps=None)
    told = " ".join(capsys.readouterr().err.split())
    assert "equal 3 nothing to learn from" in told
    assert "note: 2 of 2 steps had nothing to learn from" in told
    broken, place = small(base, steps=5, environment={"path": path, "options": {"judged": False}}), tmp_path / "broken"
    with pytest.raises(ValueError, match="no answer of the last 3 steps could be judged"):
        run(broken, place, steps=None)
    run(broken, place, steps=None)  # two steps are left
    assert [line["step"] for line in lines(place)] == [0, 1, 2, 3, 4]


def test_a_run_with_some_verdicts_goes_on_although_no_group_has_two(tmp_path: Path) -> None:
    rollouts = {"prompts": 1, "group": 2, "context": 64}
    some = small(write_base(tmp_path / "base"), steps=4, environment={"path": f"{__name__}:halves"}, rollouts=rollouts)
    run(some, tmp_path / "run", steps=None)
    assert [(line["broken"], line["small"], line["learned"]) for line in lines(tmp_path / "run")] == [(1, 1, 0)] * 4


def test_a_disk_without_room_for_the_run_is_told_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, place = write_base(tmp_path / "base"), tmp_path / "run"
    whole = small(base)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(checks.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
        with pytest.raises(
            ValueError, match=r"needs .* of room \(three states of .*, three references of .*, a model of 0"
        ):
            run(whole, place)
    run(whole, place)
    numbers, state = checks.state_of(BaseModel.open(base).config, whole.optimizer, "fp32")
    # the prediction block is not learned and has no moments
    assert 0.8 * state < (place / "state.pt").stat().st_size < 1.2 * state
    (reference,) = place.glob("reference-*.pt")
    assert 4 * numbers <= reference.stat().st_size < 6 * numbers


def test_every_line_of_a_prompt_file_is_judged_before_the_run(tmp_path: Path) -> None:
    base, file = write_base(tmp_path / "base"), tmp_path / "prompts.jsonl"
    good = {"messages": [{"role": "user", "content": "say 4"}], "verifier": "number", "answer": 4}
    tool = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    for wrong, message in (
        ({"verifier": "nope"}, "prompt 41: task.verifier must be one of number"),
        ({"answer": "four"}, r"prompt 41: answer: the verifier number cannot compare with 'four' \(ValueError"),
        ({"verifier": "choice"}, r"the verifier choice cannot compare with 4 \(TypeError"),
        ({"verifier": "one_of", "answer": "yes"}, "cannot compare with 'yes' .*a list is expected"),
        ({"tools": [tool]}, "prompt 41: shows the tool 'f', but its environment has no such tool"),
        ({"messages": [{"role": "user", "content": "say 4 " * 400}]}, "prompt 41: .* leaves no room for an answer"),
        ({"effort": "max"}, "efforts.max is missing"),
    ):
        rows = [good] * 40 + [{**good, **wrong}]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source, fine = {"path": str(file)}, {"path": "tests.posttraining.runs:prompt"}
        rollouts = {"prompts": 1, "group": 2, "context": 1024}
        whole = small(base, prompts=source, environment={}, rollouts=rollouts)
        with pytest.raises(ValueError, match=message):
            run(whole, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        both = {"path": f"{__name__}:both"}
        watched = {**source, "every": 1, "prompts": 1}
        trial = small(base, prompts=fine, environment=both, rollouts=rollouts, held_out=watched)
        with pytest.raises(ValueError, match=message):
            run(trial, tmp_path / "run")


def test_the_notes_of_the_model_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    opened = BaseModel.open(write_base(tmp_path / "base"))
    monkeypatch.setattr(BaseModel, "open", lambda path: replace(opened, notes=("a thing to know",)))
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        run(GrpoRecipe.from_dict(tomllib.loads(RECIPE)), tmp_path / "run")
    assert "note: a thing to know" in capsys.readouterr().err
