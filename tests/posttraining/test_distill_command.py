"""`dsv4 distill` as people run it: a process that is killed goes on as if it had not been; mistakes are told."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dsv4.cli.rollout_start import Options, run_recipe
from dsv4.posttraining.base_model import BaseModel
from dsv4.posttraining.distill_recipe import DistillRecipe
from dsv4.posttraining.distill_run import DistillRun
from tests.cli.test_sft import write_base
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
[teachers.d]
path = "TEACHER"
[objective]
reference = 0.01
[lr]
peak = 1e-4
[efforts.high]
tokens = 12
[rollouts]
prompts = 3
group = 1
context = 64
[optimizer]
kind = "adamw"
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with another output norm: a teacher that says something else."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    shutil.copytree(ROOT / "models" / "nano", folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if "norm.weight" in tensors:
            tensors["norm.weight"] = tensors["norm.weight"] * 0.5
            save_file(tensors, file)
    return folder


def command(folder: Path, teacher: Path, *more: str, export: str = "fp32") -> list[str]:
    recipe = folder.parent / "small.toml"
    recipe.write_text(RECIPE.replace("TEACHER", str(teacher)))
    flags = ("--folder", str(folder), "--live", "-1", "--threads", "1", "--export", export)
    return [sys.executable, "-m", "dsv4.cli", "distill", str(recipe), *flags, *more]


def test_a_killed_run_is_the_run_that_was_not(teacher: Path, tmp_path: Path) -> None:
    killed_and_resumed(lambda folder: command(folder, teacher), tmp_path)
    told = lines(tmp_path / "cut")
    assert [line["step"] for line in told] == [0, 1, 2, 3]
    assert told[0]["kl.d"] > 0.01
    assert told[0]["reference_kl"] < 1e-5 < told[-1]["reference_kl"]
    assert "reward.d.high" in told[0]
    assert told[0]["samples"][0]["answer"]
    assert not list((tmp_path / "cut" / "teachers").iterdir())


def test_the_last_part_computes_with_the_released_numbers_and_leaves_them(teacher: Path, tmp_path: Path) -> None:
    asked = command(tmp_path / "run", teacher, "--set", "qat_from=1", "--set", "steps=2", export="auto")
    made = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "(release)" in made.stderr
    assert (tmp_path / "run" / "model" / "tokenizer.json").exists()


def test_mistakes_are_told_before_anything_is_learned(teacher: Path, tmp_path: Path) -> None:
    for change, message in (
        ("objective.kind=other", "objective.kind must be"),
        ("teachers={}", "teachers must not be empty"),
        ("teachers.d.path=nowhere", "nowhere"),
        ('teachers={e={path="models/nano"}}', "teachers.d is missing"),
        ("qat_form=3", "qat_form is not a field"),
    ):
        made = subprocess.run(
            command(tmp_path / "run", teacher, "--set", change), cwd=ROOT, capture_output=True, text=True
        )
        assert made.returncode == 1, change
        assert message in made.stderr, made.stderr
        assert "Traceback" not in made.stderr


def test_a_domain_without_teacher_is_found_wherever_it_stands_in_the_file(tmp_path: Path) -> None:
    base, file = write_base(tmp_path / "base"), tmp_path / "prompts.jsonl"
    row = {"messages": [{"role": "user", "content": "say 4"}], "verifier": "number", "answer": 4, "domain": "d"}
    rows = [row] * 40 + [{**row, "domain": "e"}]
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    raw = tomllib.loads(RECIPE.replace("TEACHER", str(base)))
    raw |= {"init": str(base), "prompts": {"path": str(file)}, "environment": {}, "rollouts": {"prompts": 1}}
    made = DistillRecipe.from_dict(raw)
    with pytest.raises(ValueError, match=r"teachers\.e is missing: prompt 41 is of this domain"):
        run_recipe(made, tmp_path / "run", Options(-1, None, "none", None, 1), DistillRun)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_vocabulary_is_told_before_the_student_is_loaded(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BaseModel, "trainable", lambda *_: pytest.fail("the student is loaded"))
    raw = tomllib.loads(RECIPE.replace("TEACHER", str(ROOT / "models" / "nano")))
    raw["init"] = str(write_base(tmp_path / "base"))
    with pytest.raises(ValueError, match=r"teacher .*nano has [0-9,]+ ids, the student [0-9,]+: their distributions"):
        run_recipe(DistillRecipe.from_dict(raw), tmp_path / "run", Options(-1, None, "none", None, 1), DistillRun)
    assert not (tmp_path / "run").exists()
