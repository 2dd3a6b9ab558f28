"""The comparison of distillation with its controls, as small as it gets: it goes on where it was stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from recipes.nano import distill_controls
from recipes.nano.distill_controls import FIGURES, TABLE, main, table
from tests.conftest import ROOT

RECIPE = """
name = "small"
init = "models/nano"
device = "auto"
steps = 1
[prompts]
path = "tests.posttraining.runs:prompt"
[held_out]
path = "tests.posttraining.runs:prompt"
prompts = 4
[environment]
path = "tests.posttraining.runs:environment"
[teachers.d]
path = "TEACHER"
[lr]
peak = 1e-4
[efforts.high]
tokens = 6
[rollouts]
prompts = 3
group = 1
context = 64
[optimizer]
kind = "adamw"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Of a student and a teacher that says something else."""
    shutil.copytree(ROOT / "models" / "nano", tmp_path / "teacher")
    for file in (tmp_path / "teacher").glob("*.safetensors"):
        tensors = load_file(file)
        if "norm.weight" in tensors:
            save_file({**tensors, "norm.weight": tensors["norm.weight"] * 0.5}, file)
    made = tmp_path / "small.toml"
    made.write_text(RECIPE.replace("TEACHER", str(tmp_path / "teacher")))
    return made


def test_what_is_missing_is_done_and_the_rest_is_kept(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = [str(recipe), "--out", str(out), "--tokens", "36", "--threads", "1", "--only", "reverse,average"]
    with monkeypatch.context() as patched:
        patched.setattr(distill_controls, "save_average", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(asked)
    kept = json.loads((out / FIGURES).read_text())["rows"]
    assert list(kept) == ["student", "teacher d", "reverse"]
    assert 18 <= kept["reverse"]["tokens"] <= 54
    shutil.copytree(tmp_path / "teacher", out / "average")  # as a run leaves it that was stopped before it asked
    monkeypatch.setattr(distill_controls, "run_recipe", interrupted)
    main(asked)
    rows = json.loads((out / FIGURES).read_text())["rows"]
    assert {name: row for name, row in rows.items() if name != "average"} == kept
    assert rows["average"]["domains"]["d"]["n"] == 4
    assert (out / TABLE).read_text() in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*asked, "--tokens", "100"])
    assert "has the figures of another recipe or number of tokens" in capsys.readouterr().err


def test_a_teacher_of_which_nothing_is_asked_is_told_first(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = f'teachers.other={{path="{tmp_path / "teacher"}"}}'
    with pytest.raises(SystemExit):
        main([str(recipe), "--out", str(tmp_path / "out"), "--only", "", "--set", change])
    assert "held_out: there is no prompt of the domain other" in capsys.readouterr().err


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--only", "reverse,mean"], "--only: no way mean"),
        (["--tokens", "0"], "tokens must be at least 1"),
        (["--set", "held_out={}"], "held_out.path is missing"),
        (["--set", "held_out.samples=4"], "held_out.samples must be 1"),
        (["--set", "rollouts.asynchronous=true"], "rollouts.asynchronous: the engine cannot hold a teacher"),
    ],
)
def test_mistakes_are_told(change: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.toml"
    file.write_text(RECIPE)
    with pytest.raises(SystemExit):
        main([str(file), "--out", str(tmp_path / "out"), *change])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_table_has_student_ways_and_teachers() -> None:
    def row(a: float, b: float, **more: Any) -> dict[str, Any]:
        return {"domains": {"a": {"n": 2, "mean": a, "error": None}, "b": {"n": 2, "mean": b, "error": 0.1}}, **more}

    rows = {
        "student": row(0, 0.5),
        "teacher a": row(1, 0),
        "teacher b": row(0, 0.75),
        "sft": row(0.5, 0.5, tokens=1234),
    }
    assert table(rows, ["a", "b"], ["sft"]).splitlines()[2:] == [
        "| student before | 0.0 | 50.0 ± 10.0 | - |",
        "| mixed SFT on the teachers' answers | 50.0 | 50.0 ± 10.0 | 1,234 |",
        "| the domain's teacher | 100.0 | 75.0 ± 10.0 | - |",
    ]
