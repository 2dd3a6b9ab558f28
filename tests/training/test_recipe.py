"""Recipes: read, changed, refused with the field's name."""

from pathlib import Path

import pytest

from dsv4.training.recipe import Recipe
from dsv4.training.schedule import Phase
from dsv4.training.settings import OptimizerSettings
from tests.conftest import ROOT
from tests.training.runs import raw_recipe, recipe

SHIPPED = sorted(ROOT.glob("recipes/*/*.toml"))  # deeper folders hold data of generators


def test_values_arrive_with_their_types() -> None:
    made = recipe()
    assert made.stages[1].phase is Phase.WARMUP
    assert made.config(97).compress_ratios == (0, 4, 16, 0)
    assert made.schedule.tokens == 3000
    assert Recipe.from_dict(made.to_dict()) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonsense": 1}, "nonsense is not a field; known fields: "),
        ({"stages": [{"tokens": 1, "length": 1, "fase": "x"}]}, "stages.0.fase is not a field; known fields: "),
        ({"stages": [{"tokens": 0, "length": 1}]}, r"^stages\.0\.tokens must be positive, got 0"),
        ({"lr": {**raw_recipe()["lr"], "peak": -1}}, "lr.peak must be positive, got -1"),
        (
            {"model": {**raw_recipe()["model"], "heads": 2}},
            r"model\.heads is not a field; known fields: .*num_attention_heads",
        ),
        ({"model": {**raw_recipe()["model"], "vocab_size": 9}}, "vocab_size comes from the tokenizer"),
        ({"data": {**raw_recipe()["data"], "fim": 1.5}}, r"data.fim must be in \[0, 1\], got 1.5"),
        ({"data": {**raw_recipe()["data"], "vocabulary": 512}}, "either tokenizer .* or vocabulary"),
        ({"model": {**raw_recipe()["model"], "compress_ratios": [0, 0, 16, 0]}}, "phase warmup trains indexers"),
        ({"data": {"tokenizer": "x", "sources": []}}, "^data.sources must not be empty"),
        ({"model": {**raw_recipe()["model"], "hidden_size": "abc"}}, "model.hidden_size must be an integer, got 'abc'"),
        ({"model": {**raw_recipe()["model"], "hidden_size": True}}, "model.hidden_size must be an integer, got True"),
        (
            {"model": {**raw_recipe()["model"], "yarn": {"fac": 2.0}}},
            "model.yarn.fac is not a field; known fields: beta_fast",
        ),
        (
            {"model": {**raw_recipe()["model"], "quantized": True}},
            "model.quantized comes from the layout of the export",
        ),
        ({"lr": {**raw_recipe()["lr"], "peak": "fast"}}, "lr.peak must be a number, got 'fast'"),
        ({"lr": {**raw_recipe()["lr"], "peak": float("inf")}}, "lr.peak must be finite, got inf"),
        ({"lr": 3}, "lr must be a table, got 3"),
        ({"stages": [{"length": 64}]}, "stages.0.tokens is missing"),
        (
            {"stages": [{"tokens": 9, "length": 64, "phase": "fast"}]},
            "phase must be 'dense', 'warmup' or 'sparse', got 'f",
        ),
        ({"name": "../up"}, "name must be letters, digits"),
        ({"seed": -1}, "seed must be in"),
        ({"batch": {"full": 95}}, "batch.full must be at least the longest stages.length 96, got 95"),
        ({"batch": {"full": 256, "start": 96}}, "batch.start and batch.ramp need each other"),
        ({"loss": {"balance": -1.0}}, "loss.balance must be at least 0, got -1.0"),
        ({"qat_from": 3000}, r"qat_from must be in \[0, 3000\), got 3000"),
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
    assert Recipe.from_file(file, [*model, "stages.0.tokens=3e6"]).stages[0].tokens == 3_000_000
    for change, message in (
        ("lr", "needs key=value, got 'lr'"),
        ("stages.7.length=5", "--set stages.7.length=5: stages has entries 0 to 0, got '7'"),
        ("stages.first.length=5", "stages has entries 0 to 0, got 'first'"),
        ("stages.-1.length=5", "stages has entries 0 to 0, got '-1'"),
        ("lr.peak.x=5", "--set lr.peak.x=5: lr.peak is no table, but 0.001"),
        ("lr.peek=5", "lr.peek is not a field; known fields: decay_from, decay_to, final, peak, warmup"),
        ("model.hidden_size=abc", "model.hidden_size must be an integer, got 'abc'"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe.from_file(file, [*model, change])


def test_files_that_are_no_recipe_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"small\.tml: no such recipe; there are .*recipes/text/small\.toml"):
        Recipe.from_file(tmp_path / "small.tml")
    for content, message in ((b"name = \xff", "line 1, column 8: 0xff"), (b"name = ", "r.toml: "), (b"", "is missing")):
        (tmp_path / "r.toml").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Recipe.from_file(tmp_path / "r.toml")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f.stem)
def test_shipped_recipes_are_valid(file: Path) -> None:
    made = Recipe.from_file(file)
    assert made.schedule.at(made.schedule.tokens - 1).stage_index == len(made.stages) - 1


@pytest.mark.parametrize(("field", "known"), [("products", "fp32, int16, bf16"), ("kind", "muon, adamw")])
def test_an_optimizer_made_in_python_is_checked_too(field: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"optimizer.{field} must be one of {known}, got 'x'"):
        OptimizerSettings(**{field: "x"})  # type: ignore[arg-type]
