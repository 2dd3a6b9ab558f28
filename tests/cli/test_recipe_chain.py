"""`dsv4 recipe`: stages in their order, each once, resumed where they stopped; the chain of the bundled model."""

import json
import os
import signal
import threading
import time
import tomllib
from pathlib import Path

import pytest

from dsv4.checkpoint.names import LAYOUTS
from dsv4.cli import recipe as command
from dsv4.cli.__main__ import VERBS
from dsv4.cli.recipe import chain_file, recipe
from dsv4.cli.recipe_chain import Chain, ChainRecord
from dsv4.posttraining.base_model import BaseModel
from dsv4.posttraining.distill_recipe import DistillRecipe
from dsv4.posttraining.recipe import GrpoRecipe
from dsv4.posttraining.sft import SftWishes, with_wishes
from dsv4.training.recipe import Recipe
from tests.conftest import ROOT

# each stage notes that it ran; `second` takes a value, and fails while a file is there
CHAIN = """
folder = "work"

[[stages]]
name = "first"
about = "makes a file"
command = ["{python}", "stage.py", "{folder}", "first"]
makes = "first/done"
minutes = 1

[[stages]]
name = "second"
about = "makes another"
command = ["{python}", "stage.py", "{folder}", "second"]
setting = ["--set", "{key}={value}"]
makes = "second/done"
minutes = 2
"""
STAGE = """
import pathlib, sys, time
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
with (folder / "calls").open("a") as out:
    out.write(" ".join(sys.argv[2:]) + "\\n")
if (folder / f"{name} fails").exists():
    sys.exit(3)
if (folder / f"{name} waits").exists():
    (folder / "waiting").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
if not (folder / f"{name} is lazy").exists():
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "done").touch()
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    chain = tmp_path / "recipes" / "tiny" / "chain" / "chain.toml"
    chain.parent.mkdir(parents=True)
    chain.write_text(CHAIN)
    (tmp_path / "stage.py").write_text(STAGE)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def calls(work: Path) -> list[str]:
    file = work / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_stages_run_in_order_and_once(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe("tiny", folder=work)
    assert calls(work) == ["first", "second"]
    recipe("tiny", folder=work)
    assert calls(work) == ["first", "second"]
    out = capsys.readouterr().out
    assert "second       about 2 minutes" in out
    assert "second       done in" in out


def test_a_stage_that_fails_is_tried_again(work: Path) -> None:
    (work / "second fails").touch()
    with pytest.raises(ValueError, match="stage second ended with code 3"):
        recipe("tiny", folder=work)
    (work / "second fails").unlink()
    recipe("tiny", folder=work)
    assert calls(work) == ["first", "second", "second"]


def test_a_stage_that_makes_nothing_has_not_finished(work: Path) -> None:
    (work / "first is lazy").touch()
    with pytest.raises(ValueError, match="first ended without"):
        recipe("tiny", folder=work)
    assert calls(work) == ["first"]


def test_a_stage_whose_result_is_gone_runs_again(work: Path) -> None:
    recipe("tiny", folder=work)
    (work / "first" / "done").unlink()
    recipe("tiny", folder=work)
    assert calls(work) == ["first", "second", "first"]


def test_one_stage_alone_with_a_setting(work: Path) -> None:
    recipe("tiny", folder=work, stage="second", set=["second.lr.peak=1e-3"])
    assert calls(work) == ["second --set lr.peak=1e-3"]
    with pytest.raises(ValueError, match="second was begun with other settings"):
        recipe("tiny", folder=work)


def test_a_dry_run_starts_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe("tiny", folder=work, dry_run=True)
    assert not calls(work)
    assert not (work / "chain.json").exists()
    assert "about 0.1 hours left" in capsys.readouterr().out


def test_a_stopped_stage_is_awaited_and_goes_on_later(work: Path) -> None:
    (work / "first waits").touch()

    def stop() -> None:
        while not (work / "waiting").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        recipe("tiny", folder=work)
    thread.join()
    kept = json.loads((work / "chain.json").read_text())
    assert not kept["first"]["finished"]
    assert kept["first"]["seconds"] > 0
    (work / "first waits").unlink()
    recipe("tiny", folder=work)
    assert calls(work) == ["first", "first", "second"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "third"}, "no stage third; there are first, second"),
        ({"set": ["second"]}, "--set must be STAGE.KEY=VALUE"),
        ({"set": ["third.x=1"]}, "no stage third"),
        ({"set": ["first.x=1"]}, "stage first takes no settings"),
    ],
)
def test_mistakes_are_told_before_anything_runs(options: dict, message: str, work: Path) -> None:
    with pytest.raises(ValueError, match=message):
        recipe("tiny", folder=work, **options)
    assert not calls(work)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distill.stps=3", "stage distill: .*distill.toml: stps is not a field"),
        ("math.steps=many", "stage math: .*math.toml: steps must be an integer, got 'many'"),
        ("polish.lr.top=1", r"stage polish: .*polish.toml: lr\.top is not a field"),
        ("base.lr.peak=0", r"stage base: .*base.toml: lr"),
    ],
)
def test_a_wrong_field_of_a_late_stage_is_told_before_the_first(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        recipe("nano", folder=tmp_path / "nano", set=[change], dry_run=True)
    assert not (tmp_path / "nano").exists()


def test_an_unknown_chain_is_told() -> None:
    with pytest.raises(ValueError, match=r"no chain mini in .*; there are nano"):
        chain_file("mini")


def test_a_wrong_chain_is_told(tmp_path: Path) -> None:
    file = tmp_path / "chain.toml"
    file.write_text('folder = "x"\nstages = [{ name = "a" }]\n')
    with pytest.raises(ValueError, match=r"chain.toml.*(.|\n)*about"):
        Chain.from_file(file)


def test_the_chain_of_nano_names_what_there_is(tmp_path: Path) -> None:
    chain = Chain.from_file(chain_file("nano"))
    assert sum(stage.minutes for stage in chain.stages) <= 360
    for stage in chain.stages:
        call = stage.call({"folder": str(tmp_path)}, {"a.b": "1"} if stage.setting else {})
        assert "{" not in "".join(call).replace("{python}", "")
        assert not ChainRecord.read(tmp_path).finished(stage)
        if "dsv4.cli" in call:
            verb, file = call[call.index("dsv4.cli") + 1 :][:2]
            assert verb in VERBS
            if verb == "sft":
                raw = tomllib.loads((ROOT / file).read_text())
                base = BaseModel.open(ROOT / "models" / "nano").changed(raw.get("model", {}))
                Recipe.from_dict(with_wishes(raw, SftWishes(), base, LAYOUTS["fp32"]))
                continue
            kinds = {"train": Recipe, "grpo": GrpoRecipe, "distill": DistillRecipe}
            kinds[verb].from_file(ROOT / file, [call[i + 1] for i, word in enumerate(call) if word == "--set"][:-1])
        else:
            module = call[call.index("-m") + 1]
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
