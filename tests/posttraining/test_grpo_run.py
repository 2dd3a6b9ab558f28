"""A whole run with the real engine: the reward rises, and a run that was stopped goes on bit for bit."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.posttraining.recipe import GrpoRecipe
from dsv4.posttraining.types import Prompt
from dsv4.training.settings import OptimizerSettings
from tests.posttraining import runs
from tests.posttraining.runs import numbers, take

KL = {"beta": 0.01, "every": 2}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_reward_rises(asynchronous: bool, tmp_path: Path) -> None:
    rollouts = {"prompts": 8, "group": 8, "asynchronous": asynchronous}
    with runs.run(runs.recipe(steps=10, rollouts=rollouts), tmp_path) as made:
        records = take(made, 10)
    rewards = [record["reward"] for record in records]
    assert rewards[0] < 0.35
    assert max(rewards[7:]) > 0.8
    if not asynchronous:
        assert max(abs(record["mismatch"]) for record in records if record["learned"]) < 1e-9
    else:
        assert all("mismatch" not in record for record in records[1:])  # no token is of the newest weights


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stopped_run_goes_on_bit_for_bit(asynchronous: bool, tmp_path: Path) -> None:
    rollouts = {"prompts": 4, "group": 4, "asynchronous": asynchronous}
    settings: dict[str, Any] = {"steps": 6, "rollouts": rollouts, "kl": KL, "policy": {"updates": 2}}
    with runs.run(runs.recipe(**settings), tmp_path / "whole") as made:
        whole = take(made, 6)
        wanted = made.learner.model.state_dict()
    with runs.run(runs.recipe(**settings), tmp_path / "cut") as made:
        first = take(made, 3)
    with runs.run(runs.recipe(**settings), tmp_path / "cut") as made:
        assert made.step == 3
        rest = take(made, 3)
        got = made.learner.model.state_dict()
    assert [numbers(record) for record in (*first, *rest)] == [numbers(record) for record in whole]
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert any(record["kl"] > 0 for record in whole)


def test_groups_that_compare_nothing_give_their_place_to_others(tmp_path: Path) -> None:
    """Of groups of three every fourth is all right or all wrong."""
    learned, filled = dict[int, list[float]](), dict[int, list[float]]()
    for draws in (1, 6):
        rollouts, selection = {"prompts": 6, "group": 3}, {"draws": draws}
        recipe = runs.recipe(steps=4, rollouts=rollouts, selection=selection, lr={"peak": 1e-6})
        with runs.run(recipe, tmp_path / str(draws), odd=True) as made:
            records = take(made, 4)
        learned[draws] = [record["samples_learned"] for record in records]
        filled[draws] = [record.get("asked", 6) - record["equal"] for record in records]
        assert not any(record.get("pool") for record in records), "nothing is asked again, so nothing is kept for it"
    assert filled[6] == [6] * 4
    assert learned[6] == [18] * 4
    assert sum(learned[1]) < 4 * 18


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_that_selects_prompts_goes_on_bit_for_bit(asynchronous: bool, tmp_path: Path) -> None:
    """The state has the pool as the next step finds it, also where that step's rollouts are made already."""
    selection = {"draws": 3, "again": 0.5, "low": 0.0, "high": 1.0, "pool": 8}
    rollouts = {"prompts": 4, "group": 3, "asynchronous": asynchronous}
    recipe = runs.recipe(steps=6, rollouts=rollouts, selection=selection)
    with runs.run(recipe, tmp_path / "whole", odd=True) as made:
        whole = take(made, 6)
        wanted = made.learner.model.state_dict()
    found = []
    for _ in range(3):
        with runs.run(recipe, tmp_path / "cut", odd=True) as made:
            found += take(made, 2)
            got = made.learner.model.state_dict()
    assert [numbers(record) for record in found] == [numbers(record) for record in whole]
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert all(record["asked_again"] == 2 for record in whole[1:])
    assert any(record["redrawn"] for record in whole)


def test_another_recipe_does_not_go_on(tmp_path: Path) -> None:
    with runs.run(runs.recipe(), tmp_path) as made:
        take(made, 1)
    with (
        pytest.raises(ValueError, match="was made with another recipe: seed differs"),
        runs.run(runs.recipe(seed=3), tmp_path),
    ):
        pass
    with runs.run(runs.recipe(steps=9, micro=100), tmp_path) as made:
        assert made.step == 1


@pytest.mark.parametrize("lacking", ["selection", "selection.pool", "rollouts.context"])
def test_the_state_of_an_older_version_says_what_to_do(lacking: str, tmp_path: Path) -> None:
    recipe = runs.recipe()
    made = recipe.to_dict()
    name, _, inner = lacking.partition(".")
    del (made[name] if inner else made)[inner or name]
    with pytest.raises(ValueError, match=f"by an older dsv4, which had no {lacking}: finish it with that version"):
        recipe.check_resume(made, tmp_path)
    recipe.check_resume(recipe.to_dict(), tmp_path)


def test_products_of_an_optimizer_without_any_may_differ(tmp_path: Path) -> None:
    """Their default changed, and a run with AdamW has none."""
    recipe = runs.recipe()
    assert recipe.optimizer.kind == "adamw"
    made = recipe.to_dict()
    made["optimizer"]["products"] = "fp32"
    assert made["optimizer"] != recipe.to_dict()["optimizer"]
    recipe.check_resume(made, tmp_path)
    muon = replace(recipe, optimizer=OptimizerSettings(kind="muon"))
    made["optimizer"]["kind"] = "muon"
    with pytest.raises(ValueError, match=r"optimizer\.products differs"):
        muon.check_resume(made, tmp_path)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_state_from_before_there_were_products_goes_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All products were fp32 then. They decide with Muon alone."""
    now = runs.recipe(optimizer={"kind": kind, "products": "fp32"})
    older = now.to_dict()
    del older["optimizer"]["products"]
    with monkeypatch.context() as patch, runs.run(now, tmp_path) as made:
        patch.setattr(GrpoRecipe, "to_dict", lambda recipe: older)
        take(made, 1)
    with runs.run(now, tmp_path) as made:
        assert made.step == 1
    with (
        pytest.raises(ValueError, match=r"optimizer\.products differs \(it was 'fp32'")
        if kind == "muon"
        else nullcontext(),
        runs.run(runs.recipe(optimizer={"kind": kind}), tmp_path),
    ):
        pass


def test_the_reference_follows_every_so_many_updates_and_old_files_go(tmp_path: Path) -> None:
    with runs.run(runs.recipe(kl={"beta": 0.01, "every": 1}), tmp_path) as made:
        for _ in range(3):
            records = take(made, 1)
        assert records[0]["kl"] == pytest.approx(0, abs=1e-9)  # the reference is the policy itself
    assert sorted(file.name for file in tmp_path.glob("reference-*")) == ["reference-2.pt", "reference-3.pt"]
    (tmp_path / "reference-3.pt").unlink()
    with (
        pytest.raises(ValueError, match=r"reference-3\.pt is missing"),
        runs.run(runs.recipe(kl={"beta": 0.01, "every": 1}), tmp_path),
    ):
        pass


@pytest.mark.parametrize("draws", [1, 2])
def test_what_a_steps_groups_lead_to_is_learned_in_the_same_step(draws: int, tmp_path: Path) -> None:
    """As a judge learns from the answers that it has judged."""
    rollouts = {"prompts": 3, "group": 2}
    with runs.run(runs.recipe(steps=2, rollouts=rollouts, selection={"draws": draws}), tmp_path) as made:
        made._sources = replace(
            made._sources,
            following=lambda groups: [Prompt(f"{g.prompt.key}/judged", g.prompt.tokens, "d") for g in groups[:2]],
            shown=lambda groups: [{"key": group.prompt.key} for group in groups],
        )
        records = take(made, 2)
    for step, record in enumerate(records):
        keys = [sample["key"] for sample in record["samples"]]
        assert keys[-2:] == [f"{step}/0/judged", f"{step}/1/judged"]
        assert len(keys) >= 5
