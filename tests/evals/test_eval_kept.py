"""What a run keeps of its answers, and which rows it refuses: without inspect-ai."""

from pathlib import Path

import pytest

from dsv4.evals.kept import ANSWERS, SETTINGS, KeptAnswer, RunFolder, read_run
from dsv4.evals.registry import suite_named
from dsv4.evals.run import EvalSettings, make_plan
from dsv4.evals.suite import Graded


def test_data_of_an_item_is_not_in_its_answers(tmp_path: Path) -> None:
    plan = make_plan(EvalSettings(suite_named("codeforces"), place="stand-in"))
    item = plan.items[0]
    RunFolder(tmp_path, {}, plan.items).add(KeptAnswer(Graded(item.id, 0, 1.0, data=dict(item.data))))
    assert "people" not in (tmp_path / ANSWERS).read_text()
    again = RunFolder(tmp_path, {}, plan.items)
    assert again.answers[0].graded.data["people"] == item.data["people"] != []


def test_only_a_run_with_answers_is_protected_from_another_one(tmp_path: Path) -> None:
    plan = make_plan(EvalSettings(suite_named("gsm8k"), place="stand-in"))
    less = make_plan(EvalSettings(suite_named("gsm8k"), place="stand-in", limit=2))
    RunFolder(tmp_path, plan.identity("m", "model http://127.0.0.1:9"), plan.items)  # its judge could not be had
    folder = RunFolder(tmp_path, plan.identity("m", "rule"), plan.items)
    folder.add(KeptAnswer(Graded(plan.items[0].id, 0, 1.0)))
    for identity, difference in (
        (plan.identity("m", "model x"), 'with grader "rule", not "model x"'),
        (less.identity("m", "rule"), "with count 6, not 2"),
        (plan.identity("m", "rule") | {"items": "0"}, "of other questions"),
    ):
        with pytest.raises(ValueError, match=f"--out {tmp_path} has a run {difference}: give another folder"):
            RunFolder(tmp_path, identity, plan.items)


def test_half_of_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    item = make_plan(EvalSettings(suite_named("gsm8k"), place="stand-in", limit=1)).items[0]
    kept = KeptAnswer(Graded(item.id, 0, 1.0), found="é\ud800", answer={"content": "\udfff\\ud800 💡"})
    RunFolder(tmp_path, {}, (item,)).add(kept)
    assert RunFolder(tmp_path, {}, (item,)).answers == [kept]
    assert "é\\ud800" in (tmp_path / ANSWERS).read_text()


def test_a_run_that_is_compared_with_stays_as_it_is(tmp_path: Path) -> None:
    item = make_plan(EvalSettings(suite_named("gsm8k"), place="stand-in", limit=1)).items[0]
    RunFolder(tmp_path, {}, (item,)).add(KeptAnswer(Graded(item.id, 0, 1.0)))
    file = tmp_path / ANSWERS
    written = file.read_bytes() + b'{"graded": {"item'  # another process is at it
    file.write_bytes(written)
    assert len(read_run(tmp_path)[1]) == 1
    assert file.read_bytes() == written


@pytest.mark.parametrize("line", ["{", "[1]", '{"graded": {}}', '{"graded": {"item": "x"}, "messages": []}', "\xff"])
def test_a_broken_line_of_a_run_is_named(tmp_path: Path, line: str) -> None:
    item = make_plan(EvalSettings(suite_named("gsm8k"), place="stand-in", limit=1)).items[0]
    RunFolder(tmp_path, {}, (item,)).add(KeptAnswer(Graded(item.id, 0, 1.0)))
    file = tmp_path / ANSWERS
    file.write_bytes(file.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(
        ValueError, match=rf"{file}, line 2: no answer of a run .*; without this line it is asked again"
    ):
        read_run(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_broken_settings_of_a_run_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path / SETTINGS} (is no JSON|must be a JSON object)"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("suite", "row", "reason"),
    [
        ("gsm8k", '{"question": "?", "answer": 4}', "row 1 of .* is no row of gsm8k"),
        ("mmlu_pro", '{"question": "?", "options": 4, "answer_index": "x"}', "mmlu_pro"),
        ("codeforces", '{"problem": "A"}', "no field 'contest', which codeforces needs"),
    ],
)
def test_rows_of_another_kind_are_refused(tmp_path: Path, suite: str, row: str, reason: str) -> None:
    (tmp_path / "x.jsonl").write_text(row)
    with pytest.raises(ValueError, match=reason):
        make_plan(EvalSettings(suite_named(suite), place=str(tmp_path / "x.jsonl")))


def test_lengths_are_refused_where_they_would_choose_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--lengths: gsm8k has no texts of chosen lengths"):
        make_plan(EvalSettings(suite_named("gsm8k"), place="stand-in", lengths=(100,)))
    with pytest.raises(ValueError, match="--lengths: only generated texts have chosen lengths"):
        make_plan(EvalSettings(suite_named("mrcr"), place=str(tmp_path), lengths=(100,)))
    plan = make_plan(EvalSettings(suite_named("needle"), place="generated", lengths=(200,), limit=1))
    assert {item.data["length"] for item in plan.items} == {200}
