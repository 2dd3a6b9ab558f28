"""Recipes: read, changed, refused with the field's name."""

from pathlib import Path

import pytest

from dsv4.training.recipe import Recipe
from dsv4.training.schedule import Phase
from tests.conftest import ROOT
from tests.training.runs import raw_recipe, recipe

SHIPPED = sorted(ROOT.glob("recipes/**/*.toml"))


def test_values_arrive_with_their_types() -> None:
    made = recipe()
    assert made.stages[1].phase is Phase.WARMUP
    assert made.config(97).compress_ratios == (0, 4, 16, 0)
    assert made.schedule.tokens == 3000
    assert Recipe.from_dict(made.to_dict()) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonsense": 1}, "nonsense: Unexpected keyword argument"),
        ({"stages": [{"tokens": 1, "length": 1, "fase": "x"}]}, "stages.0.fase: Unexpected"),
        ({"stages": [{"tokens": 0, "length": 1}]}, "stage.tokens must be positive, got 0"),
        ({"lr": {**raw_recipe()["lr"], "peak": -1}}, "lr.peak must be positive, got -1"),
        (
            {"model": {**raw_recipe()["model"], "heads": 2}},
            r"model\.heads: Unexpected keyword argument; known are .*num_attention_heads",
        ),
        ({"model": {**raw_recipe()["model"], "vocab_size": 9}}, "vocab_size comes from the tokenizer"),
        ({"data": {**raw_recipe()["data"], "fim": 1.5}}, r"data.fim must be in \[0, 1\], got 1.5"),
        ({"data": {**raw_recipe()["data"], "vocabulary": 512}}, "either tokenizer .* or vocabulary"),
        ({"model": {**raw_recipe()["model"], "compress_ratios": [0, 0, 16, 0]}}, "phase warmup trains indexers"),
        ({"data": {"tokenizer": "x", "sources": []}}, "data.sources must not be empty"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(**change)


def test_changes_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(
        'name = "a"\n[model]\n[data]\ntokenizer = "t"\n[[data.sources]]\nname = "s"\nkind = "text"\npath = "p"\n'
        "[[stages]]\ntokens = 10\nlength = 4\n[lr]\npeak = 1e-3\nfinal = 0.0\nwarmup = 0\ndecay_from = 5\n"
        "decay_to = 10\n[batch]\nfull = 8\n"
    )
    model = [f"model.{name}={value}" for name, value in raw_recipe()["model"].items()]
    made = Recipe.from_file(file, [*model, "lr.peak=0.5", "stages.0.tokens=20", "name=b", "data.sources.0.weight=2"])
    assert (made.lr.peak, made.stages[0].tokens, made.name, made.data.sources[0].weight) == (0.5, 20, "b", 2.0)
    with pytest.raises(ValueError, match="needs key=value, got 'lr'"):
        Recipe.from_file(file, ["lr"])


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f.stem)
def test_shipped_recipes_are_valid(file: Path) -> None:
    made = Recipe.from_file(file)
    assert made.schedule.at(made.schedule.tokens - 1).stage_index == len(made.stages) - 1
