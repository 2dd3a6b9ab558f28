"""--device on the verbs that train: what it sets, and what a card that cannot be used says."""

import tomllib
from pathlib import Path

import pytest

from dsv4.cli.flags import device_change
from dsv4.cli.recipe import chain_file
from dsv4.cli.recipe_chain import Chain
from dsv4.cli.train import train
from dsv4.training.recipe import Recipe
from dsv4.training.recipe_fields import set_field
from tests.conftest import ROOT
from tests.training.runs import raw_recipe


def test_the_flag_is_a_change_of_the_recipe() -> None:
    raw = raw_recipe()
    for change in device_change("run.device", "cuda:1"):
        set_field(raw, change)
    assert Recipe.from_dict(raw).run.device == "cuda:1"
    assert device_change("run.device", None) == []
    with pytest.raises(ValueError, match="--device must be cpu, cuda, cuda:N or auto, got 'gpu'"):
        device_change("device", "gpu")


def test_a_card_that_is_not_there_is_told_before_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: False)
    recipe = next(iter(sorted(ROOT.glob("recipes/text/*.toml"))))
    with pytest.raises(ValueError, match=r"run\.device 'cuda' cannot be used: torch .* is a build without CUDA"):
        train(recipe, device="cuda", folder=tmp_path / "run", live=-1)
    assert not (tmp_path / "run").exists()


def test_every_stage_of_the_chain_that_trains_takes_a_device() -> None:
    chain = Chain.from_file(chain_file("nano"))
    stages = tomllib.loads(chain_file("nano").read_text(encoding="utf-8"))["stages"]
    trains = [one["name"] for one in stages if {"train", "grpo", "distill", "sft"} & {*one["command"]}]
    assert [one.name for one in chain.stages if one.device] == trains
    for stage in chain.stages:
        command = stage.call({"folder": "x"}, {}, "cuda")
        assert (command[-2:] == ["--device", "cuda"]) is bool(stage.device)
        assert "--device" not in stage.call({"folder": "x"}, {})
