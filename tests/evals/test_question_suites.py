"""Suites of questions: what is asked for a row, and which answers are right."""

import json
from collections.abc import Callable

import pytest

from dsv4.evals.answers import model_grades
from dsv4.evals.data import STAND_INS, load
from dsv4.evals.registry import suite_named, suite_names
from dsv4.evals.suite import Answer, Ask, Generate, Item, Mode


def items(name: str, mode: Mode = Mode.HIGH, seed: int = 0) -> list[Item]:
    suite = suite_named(name)
    rows = load(suite, "stand-in", Generate(seed)).rows
    return [suite.item(row, Ask(mode, seed, index)) for index, row in enumerate(rows)]


def value(name: str, item: Item, content: str) -> float:
    return suite_named(name).score(item, Answer(content)).value


def boxed(item: Item) -> str:
    return f"Thus \\boxed{{{item.target}}}."


def lettered(item: Item) -> str:
    return f"Answer: {item.target}"


RIGHT: dict[str, Callable[[Item], str]] = {
    "gsm8k": boxed,
    "math": boxed,
    "aime": boxed,
    "imo_answerbench": boxed,
    "gpqa_diamond": lettered,
    "mmlu_pro": lettered,
    "hle": lambda item: f"Explanation: so.\nAnswer: {item.target}\nConfidence: 100%",
    "simpleqa_verified": lambda item: f"It is {item.target}.",
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_count_and_others_do_not(name: str) -> None:
    if name in ("math", "imo_answerbench", "hle"):
        pytest.importorskip("math_verify")
    some = items(name)
    assert len(some) >= 3
    for item in some:
        assert value(name, item, RIGHT[name](item)) == 1
        assert value(name, item, "") == 0
        assert value(name, item, r"Answer: Z \boxed{-77}") == 0
        assert item.target not in ("", None)
        assert json.dumps([item.messages, item.target, item.data])


def test_choices_are_shuffled_by_seed_and_place_alone() -> None:
    first, again, other = items("gpqa_diamond"), items("gpqa_diamond"), items("gpqa_diamond", seed=3)
    assert first == again
    assert [item.messages for item in first] != [item.messages for item in other]
    for item in first + other:
        row = next(
            json.loads(line)
            for line in (STAND_INS / "gpqa_diamond.jsonl").read_text().splitlines()
            if json.loads(line)["Question"] in item.messages[0]["content"]
        )
        assert f"{item.target}) {row['Correct Answer']}" in item.messages[0]["content"]


def test_choices_that_do_not_exist_are_left_out() -> None:
    third = items("mmlu_pro")[2]
    assert third.data["choices"] == 5
    assert "N/A" not in third.messages[0]["content"]
    assert "LETTER is one of ABCDE." in third.messages[0]["content"]


def test_the_mode_max_of_imo_asks_for_a_proof() -> None:
    assert "boxed" in items("imo_answerbench")[0].messages[0]["content"]
    assert "rigorous proof" in items("imo_answerbench", Mode.MAX)[0].messages[0]["content"]


def test_hle_has_no_pictures_and_measures_confidence() -> None:
    some = items("hle")
    assert len(some) == 3
    score = suite_named("hle").score(some[0], Answer("Answer: 12\nConfidence: 80%"))
    assert score.value == 0
    assert score.figures == {"squared error of the confidence": pytest.approx(0.64)}


def test_simpleqa_takes_whole_words_and_knows_who_declines() -> None:
    year = items("simpleqa_verified")[1]
    suite = suite_named("simpleqa_verified")
    assert value("simpleqa_verified", year, "In 19690.") == 0
    assert suite.score(year, Answer("I do not know.")).figures == {"attempted": 0.0}
    assert suite.score(year, Answer("In 1969.")).figures == {"attempted": 1.0}


def test_a_grader_reads_the_last_verdict() -> None:
    grader = model_grades("question")
    item = Item("a", (), "Paris", data={"question": "Capital of France?"})
    prompt = grader.prompt(item, Answer("It is Paris."))
    assert "Capital of France?" in prompt
    assert "It is Paris." in prompt
    assert grader.verdict("Verdict: INCORRECT ... no.\nVerdict: CORRECT").value == 1
    assert grader.verdict("**Verdict:** INCORRECT").value == 0
    assert grader.verdict("Verdict: NOT ATTEMPTED").figures == {"attempted": 0.0}
    assert grader.verdict("Fine").found == "no verdict"


def test_figures_of_the_report_are_those_of_its_tables() -> None:
    found = {(s, p.model, p.mode): p.value for s in suite_names() for p in suite_named(s).published}
    assert found["gpqa_diamond", "V4-Pro", "max"] == 90.1
    assert found["hle", "V4-Pro", "max"] == 37.7
    assert found["mmlu_pro", "V4-Pro", "max"] == 87.5
    assert found["gsm8k", "V4-Pro-Base", ""] == 92.6
