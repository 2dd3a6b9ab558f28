"""Going on with a run: its past must be what the recipe would have done, its data what it began with."""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from dsv4.training.data import open_sources
from dsv4.training.resume import check_resume
from dsv4.training.schedule import BatchRamp, LearningRate, Phase, Schedule, Stage, past_change
from dsv4.training.trainer import Trainer
from tests.training.runs import Letters, raw_recipe, recipe, trainer

CONSTANT = {"peak": 3e-3, "final": 3e-3, "warmup": 0, "decay_from": 0, "decay_to": 0}
SHORT = {"stages": [{"tokens": 600, "length": 64, "phase": "dense"}], "lr": CONSTANT, "qat_from": None}


def test_a_finished_run_is_extended_as_if_it_had_been_longer(tmp_path: Path) -> None:
    longer = {**SHORT, "stages": [*SHORT["stages"], {"tokens": 500, "length": 96}], "qat_from": 900}
    for name in ("parts", "whole"):
        (tmp_path / name).mkdir()
    first = trainer(tmp_path / "parts", **SHORT)
    parts = [line.losses for line in first.run()]
    assert first.done
    second = trainer(tmp_path / "parts", **longer)
    assert not second.done
    parts += [line.losses for line in second.run()]
    assert parts == [line.losses for line in trainer(tmp_path / "whole", **longer).run()]


def made(**changes: Any) -> Schedule:
    base = {
        "stages": (Stage(1000, 64, Phase.DENSE), Stage(500, 96, Phase.WARMUP, lr=1e-3), Stage(1500, 96)),
        "lr": LearningRate(3e-3, 3e-4, 500, 2000, 3000),
        "batch": BatchRamp(256),
        "qat_from": 2200,
    }
    return Schedule(**{**base, **changes})


@pytest.mark.parametrize(
    ("changes", "seen", "found"),
    [
        ({}, 3000, None),
        ({"stages": (*made().stages[:2], Stage(9000, 96))}, 2500, None),
        ({"stages": (*made().stages, Stage(9000, 128))}, 3050, None),
        ({"stages": (*made().stages[:2], Stage(9000, 96, lr=1e-3))}, 1500, None),
        ({"stages": (*made().stages[:2], Stage(9000, 96, lr=1e-3))}, 1501, "stages.2"),
        ({"stages": (Stage(1100, 64, Phase.DENSE), *made().stages[1:])}, 900, None),
        ({"stages": (Stage(1100, 64, Phase.DENSE), *made().stages[1:])}, 1001, "stages.0"),
        ({"stages": (Stage(800, 64, Phase.DENSE), *made().stages[1:])}, 900, "stages.0"),
        ({"lr": LearningRate(3e-3, 3e-4, 500, 4000, 6000)}, 2000, None),
        ({"lr": LearningRate(3e-3, 3e-4, 500, 4000, 6000)}, 2001, "lr.decay_from"),
        ({"lr": LearningRate(2e-3, 3e-4, 500, 2000, 3000)}, 1, "lr.peak"),
        ({"lr": LearningRate(2e-3, 3e-4, 500, 2000, 3000)}, 0, None),
        ({"batch": BatchRamp(512)}, 1, "batch"),
        ({"mtp_weights": (0.3, 0.2)}, 1999, None),
        ({"mtp_weights": (0.3, 0.2)}, 2100, "mtp_weights"),
        ({"qat_from": 2600}, 2200, None),
        ({"qat_from": 2600}, 2300, "qat_from"),
        ({"qat_from": None}, 2300, "qat_from"),
    ],
)
def test_the_future_may_change_and_the_past_may_not(changes: dict, seen: int, found: str | None) -> None:
    assert past_change(made(), made(**changes), seen) == found


def refused(folder: Path, message: str, **changes: Any) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(folder, **changes)


def test_what_differs_is_named_with_both_values(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.advance()
    run.save()
    lr, model, settings = raw_recipe()["lr"], raw_recipe()["model"], raw_recipe()["run"]
    refused(
        tmp_path,
        r"made with another recipe: lr\.peak differs \(it was 0\.003, now it is 0\.1\)",
        lr={**lr, "peak": 0.1},
    )
    refused(tmp_path, r"model\.hidden_size differs \(it was 32, now it is 64\)", model={**model, "hidden_size": 64})
    refused(tmp_path, r"run\.numerics differs", run={**settings, "numerics": "bf16"})
    refused(tmp_path, r"data\.pool differs", data={**raw_recipe()["data"], "pool": 8})
    sources = raw_recipe()["data"]["sources"]
    more = [*sources, {**sources[0], "name": "another"}]
    names = [source["name"] for source in sources]
    refused(
        tmp_path,
        re.escape(f"data.sources differs (it was {names}, now it is {[*names, 'another']})"),
        data={**raw_recipe()["data"], "sources": more},
    )
    data = {**raw_recipe()["data"], "micro": 96}
    assert trainer(tmp_path, run={**settings, "recompute": True}, data=data).step == 1


@pytest.mark.parametrize(("kind", "refuses"), [("muon", True), ("adamw", False)])
def test_products_matter_to_muon_alone(kind: str, refuses: bool, tmp_path: Path) -> None:
    old = recipe(optimizer={"kind": kind, "products": "fp32"}).to_dict()
    older = {**old, "optimizer": {name: value for name, value in old["optimizer"].items() if name != "products"}}
    for made in (old, older):  # an older version knew no other products
        state = {"recipe": made, "position": {"tokens": 0}}
        check_resume(tmp_path, state, recipe(optimizer={"kind": kind, "products": "fp32"}), {})
        with (
            pytest.raises(ValueError, match=r"optimizer\.products differs \(it was 'fp32', now it is 'int16'\)")
            if refuses
            else nullcontext()
        ):
            check_resume(tmp_path, state, recipe(optimizer={"kind": kind}), {})


def text_run(folder: Path, path: Path) -> Trainer:
    source = {"name": "t", "kind": "jsonl", "path": str(path)}
    settings = recipe(data={**raw_recipe()["data"], "sources": [source]}, **SHORT)
    codec = Letters()
    (folder / "run").mkdir(exist_ok=True)
    return Trainer(settings, folder / "run", codec, open_sources(settings, codec, folder / "run" / "data"))


def test_changed_documents_are_noticed_and_moved_ones_are_not(tmp_path: Path) -> None:
    texts = [f"line {i} of a text" for i in range(40)]
    file, moved = tmp_path / "a.jsonl", tmp_path / "elsewhere.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run = text_run(tmp_path, file)
    run.advance()
    run.save()
    moved.write_text("".join(json.dumps({"more": 1, "text": text}) + "\r\n" for text in texts))
    assert text_run(tmp_path, moved).step == 1
    texts[7] = "another text"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.raises(ValueError, match=r"source t: .*a\.jsonl has changed since the run in"):
        text_run(tmp_path, file)


def test_a_generator_that_makes_other_documents_is_noticed(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.advance()
    run.save()
    run._data["sources"] = ["0" * 32]
    run.save()
    refused(tmp_path, "source counting: tests.training.runs:counting has changed")


def test_another_tokenizer_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path)
    run.advance()
    run.save()
    monkeypatch.setattr(Letters, "definition_json", lambda self: "other letters")
    refused(tmp_path, "was made with another tokenizer")
