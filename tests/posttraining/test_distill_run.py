"""Whole runs of distillation with the real engine: the student reaches both teachers where the average of their weights
does not; controls run with the same tokens; a run that was stopped goes on bit for bit."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.checkpoint.names import FP32
from dsv4.posttraining import teachers as teachers_module
from dsv4.posttraining.average import average_weights, save_average
from dsv4.posttraining.base_model import BaseModel
from tests.posttraining import distill_runs
from tests.posttraining.distill_runs import MARKS, right
from tests.posttraining.runs import numbers, take


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of both specialists and of the initial student."""
    folder = tmp_path_factory.mktemp("models")
    distill_runs.recipe(folder)
    return folder


def test_the_student_reaches_both_teachers_and_the_average_of_weights_does_not(place: Path, tmp_path: Path) -> None:
    alone = {d: {e: right(distill_runs.specialist(d), e) for e in MARKS} for d in MARKS}
    assert alone["a"]["a"] == alone["b"]["b"] == 1
    assert max(alone["a"]["b"], alone["b"]["a"]) < 0.2
    average = distill_runs.model()
    average.load_state_dict(average_weights([BaseModel.open(place / domain) for domain in MARKS]))
    with distill_runs.run(distill_runs.recipe(place), tmp_path) as made:
        records = take(made, 40)
        student = {domain: right(made.learner.model, domain) for domain in MARKS}
        assert made.teachers.loads == 2
        assert made.teachers.head_loads == 2 * 40  # once a step
    assert min(student.values()) >= 0.93
    assert max(right(average, domain) for domain in MARKS) < 0.88
    for domain in MARKS:
        assert records[-1][f"kl.{domain}"] < 0.1 * records[0][f"kl.{domain}"]
    assert not list((tmp_path / "teachers").iterdir())


@pytest.mark.parametrize(
    "objective", [{"updates": 2}, {"reference": 0.1}, {"teacher_share": 0.5}], ids=["updates", "reference", "mixed"]
)
def test_a_stopped_run_goes_on_bit_for_bit(objective: dict[str, Any], place: Path, tmp_path: Path) -> None:
    recipe = distill_runs.recipe(place, steps=4, objective=objective)
    with distill_runs.run(recipe, tmp_path / "whole") as made:
        whole = take(made, 4)
        wanted = made.learner.model.state_dict()
    with distill_runs.run(recipe, tmp_path / "cut") as made:
        first = take(made, 2)
    with distill_runs.run(recipe, tmp_path / "cut") as made:
        assert made.step == 2
        rest = take(made, 2)
        got = made.learner.model.state_dict()
    assert [numbers(record) for record in (*first, *rest)] == [numbers(record) for record in whole]
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_the_recipe_of_a_state_from_before_there_were_products_is_taken(place: Path, tmp_path: Path) -> None:
    recipe = distill_runs.recipe(place)
    made = recipe.to_dict()
    del made["optimizer"]["products"]
    recipe.check_resume(made, tmp_path)
    del made["optimizer"]["momentum"]
    with pytest.raises(ValueError, match=r"by an older dsv4, which had no optimizer\.momentum"):
        recipe.check_resume(made, tmp_path)


def test_a_full_disk_stops_the_run_and_it_goes_on_bit_for_bit(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = distill_runs.recipe(place, steps=3)
    with distill_runs.run(recipe, tmp_path / "whole") as made:
        whole = take(made, 3)
    with distill_runs.run(recipe, tmp_path / "cut") as made:
        take(made, 1)

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "teacher-0.rows")

    with monkeypatch.context() as patched, distill_runs.run(recipe, tmp_path / "cut") as made:
        patched.setattr(teachers_module, "write_whole", full)
        with pytest.raises(OSError, match="No space left on device"):
            take(made, 2)
    with distill_runs.run(recipe, tmp_path / "cut") as made:
        assert made.step == 1
        rest = take(made, 2)
    assert [numbers(record) for record in rest] == [numbers(record) for record in whole[1:]]


@pytest.mark.parametrize("kind", ["forward", "jsd", "top-k", "sampled", "sft"])
def test_controls_learn_from_the_same_prompts(kind: str, place: Path, tmp_path: Path) -> None:
    with distill_runs.run(distill_runs.recipe(place, steps=6, objective={"kind": kind}), tmp_path) as made:
        records = take(made, 6)
    assert all(record["learned"] > 30 and not record["skipped"] for record in records)
    assert records[0]["kl"] != records[-1]["kl"]
    if kind != "sampled":  # whose noise hides six steps
        assert records[-1]["kl"] < records[0]["kl"]
    if kind == "sft":  # the teachers answer, and do it well
        assert records[0]["finished"] > 0.9


def test_a_prompt_without_a_teacher_is_named(place: Path, tmp_path: Path) -> None:
    recipe = distill_runs.recipe(place, teachers={"a": {"path": str(place / "a")}})
    with (
        distill_runs.run(recipe, tmp_path) as made,
        pytest.raises(ValueError, match=r"teachers\.b is missing: prompt 0/1 is of this domain"),
    ):
        take(made, 1)


def test_held_to_the_initial_student_it_stays_closer(place: Path, tmp_path: Path) -> None:
    """StableOPD's divergence from the reference, at a weight that leaves nothing else."""
    entropies = []
    for reference in (0.0, 50.0):
        recipe = distill_runs.recipe(place, steps=6, objective={"reference": reference})
        with distill_runs.run(recipe, tmp_path / str(reference)) as made:
            records = take(made, 6)
        entropies.append(records[-1]["entropy"])
        if reference:
            assert records[0]["reference_kl"] == pytest.approx(0, abs=1e-6)
            assert records[-1]["reference_kl"] < 0.5
    assert entropies[1] > entropies[0] + 0.5  # the initial student is near uniform


def test_the_average_is_of_weights_by_share_and_refuses_other_shapes(place: Path, tmp_path: Path) -> None:
    models = [BaseModel.open(place / domain) for domain in MARKS]
    a, b = (distill_runs.specialist(domain).state_dict() for domain in MARKS)
    for counts, share in ((None, 0.5), ([3.0, 1.0], 0.75)):
        found = average_weights(models, counts)
        for name, value in a.items():
            wanted = share * value + (1 - share) * b[name] if value.is_floating_point() else value
            torch.testing.assert_close(found[name], wanted)
    save_average(tmp_path / "average", [place / domain for domain in MARKS], FP32)
    assert BaseModel.open(tmp_path / "average").config == models[0].config
    with pytest.raises(ValueError, match="2 models need as many weights"):
        average_weights(models, [1.0])
    other = distill_runs.write(tmp_path / "other", distill_runs.runs.model())
    with pytest.raises(ValueError, match="other is a model of another shape"):
        average_weights([models[0], BaseModel.open(other)])
