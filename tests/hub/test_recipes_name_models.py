"""Recipes name models as verbs do: by a folder, or by the name of a pulled model."""

from pathlib import Path

import pytest

from dsv4.checkpoint import FP32, save_checkpoint
from dsv4.cli import distill as distill_module
from dsv4.cli import rollout_start
from dsv4.cli.folders import default_model_folder, recipe_folder
from dsv4.testing.tiny import tiny_model
from dsv4.training.recipe import Recipe
from tests.conftest import ROOT

OWN = "someone/Tiny-V4"
DISTILL = """
name = "small"
init = "someone/Tiny-V4"
steps = 1
[prompts]
path = "tests.posttraining.runs:prompt"
[environment]
path = "tests.posttraining.runs:environment"
[teachers.d]
path = "someone/Tiny-V4"
[teachers.e]
path = "nano"
[lr]
peak = 1e-4
[efforts.high]
tokens = 12
"""


@pytest.fixture
def pulled(tmp_path: Path) -> Path:
    """A whole model in the hub's cache."""
    root = tmp_path / "hf" / "hub" / "models--someone--Tiny-V4"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("c0ffee")
    model = tiny_model()
    save_checkpoint(root / "snapshots" / "c0ffee", model.config, model.state_dict(), FP32)
    return root / "snapshots" / "c0ffee"


def test_only_names_are_replaced(pulled: Path) -> None:
    assert recipe_folder(OWN) == str(pulled)
    assert recipe_folder("nano") == str(default_model_folder())
    assert recipe_folder("runs/some/model/") == "runs/some/model/"
    with pytest.raises(FileNotFoundError, match="`dsv4 pull flash` fetches it"):
        recipe_folder("flash")


def test_a_draft_head_for_a_pulled_model(pulled: Path, tmp_path: Path) -> None:
    file = tmp_path / "head.toml"
    file.write_text((ROOT / "recipes" / "nano" / "draft.toml").read_text())
    recipe = Recipe.from_file(file, [f'init="{OWN}"', "draft.target_layer_ids=[1]"], recipe_folder)
    assert recipe.init == recipe.data.tokenizer == str(pulled)
    assert recipe.config(97).hidden_size == tiny_model().config.hidden_size


def test_pulled_teachers_and_student(pulled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, started = tmp_path / "small.toml", []
    file.write_text(DISTILL)
    monkeypatch.setattr(rollout_start, "run_recipe", lambda recipe, *more: started.append(recipe))
    distill_module.distill(file)
    (recipe,) = started
    assert recipe.init == recipe.teachers["d"].path == str(pulled)
    assert recipe.teachers["e"].path == str(default_model_folder())
