"""RULER: each task can be answered from its text, at each length, and is graded as published."""

import re
from collections import Counter

import pytest

from dsv4.evals.ruler_tasks import TASKS, share_named
from dsv4.evals.suite import Answer, Ask, Generate, Graded, Mode
from dsv4.evals.suites.ruler import SUITE

ASK = Ask(Mode.HIGH, 1, 0)


@pytest.mark.parametrize("size", [0, 1, 30])
@pytest.mark.parametrize("task", TASKS)
def test_tasks_are_the_same_for_a_seed_and_grow(task: str, size: int) -> None:
    made = TASKS[task](size, "s")
    assert made == TASKS[task](size, "s")
    assert len(TASKS[task](size + 5, "s").prompt) > len(made.prompt)
    assert TASKS[task](size + 5, "s").answers == made.answers or task == "fwe"
    assert TASKS[task](size, "other").answers != made.answers


@pytest.mark.parametrize("task", [task for task in TASKS if task.startswith("niah")])
def test_needles_are_what_the_text_says_of_the_keys(task: str) -> None:
    made = TASKS[task](40, "n")
    text, _, question = made.prompt.rpartition("\nWhat ")
    said = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", text)
    asked = re.findall(r"for (.+?) mentioned in the provided text\?", question)[0]
    keys = re.split(r", and |, ", asked)
    assert sorted(made.answers) == sorted(value for key, value in said if key in keys)
    counts = {"niah_multivalue": 4, "niah_multiquery": 4}
    assert len(made.answers) == counts.get(task, 1)
    others = {"niah_multikey_1": 4, "niah_multikey_2": 41, "niah_multikey_3": 41, "niah_multiquery": 4}
    assert len(said) == others.get(task, len(made.answers))


def test_variables_of_the_chain() -> None:
    made = TASKS["vt"](40, "v")
    asked = made.prompt.rpartition("Memorize and track")[2]
    value = re.findall(r"assigned the value (\d+) in", asked)[0]
    known = {value}
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", asked):
        if source in known:
            known.add(name)
    assert {*made.answers} == known - {value}
    assert len(made.answers) == 5


def test_words_that_appear_most() -> None:
    made = TASKS["cwe"](50, "w")
    listed = made.prompt.rpartition("Below is a numbered list")[2]
    counts = Counter(re.findall(r"\d+\. (\w+)", listed))
    assert {word for word, _ in counts.most_common(10)} == {*made.answers}
    assert {*counts.values()} == {30, 3}
    coded = TASKS["fwe"](100, "f")
    text = coded.prompt.partition("coded words. ")[2].partition("\nQuestion")[0]
    words = Counter(text.split())
    assert [word for word, _ in words.most_common(4)] == ["....", *coded.answers]
    assert len({words[word] for word in coded.answers}) == 3


def test_questions_over_documents() -> None:
    one, two = TASKS["qa_1"](20, "q"), TASKS["qa_2"](20, "q")
    person = re.findall(r"In which town was (.+) born\?", one.prompt)[0]
    assert re.findall(rf"{person} was born in the town of (\w+)\.", one.prompt) == [*one.answers]
    student = re.findall(r"the teacher of (.+)\? Answer", two.prompt)[0]
    teacher = re.findall(rf"\n(.+) was the only teacher of {student}\.", two.prompt)[0]
    assert re.findall(rf"The school of {teacher} lies in the town of (\w+)\.", two.prompt) == [*two.answers]
    assert one.prompt.count("Document ") == 21


def test_grades() -> None:
    assert share_named("A: 12, b", ("12", "B", "c", "d"), any_of=False) == 0.5
    assert share_named("it is B", ("a", "b"), any_of=True) == 1
    assert share_named("", ("a",), any_of=True) == 0


def test_the_suite() -> None:
    assert SUITE.generate is not None
    rows = [*SUITE.generate(Generate(3, small=True))]
    assert [row["task"] for row in rows] == [*TASKS]
    assert all(1900 <= -(-len(row["prompt"]) // 4) <= 2000 for row in rows)
    item = SUITE.item(rows[0], ASK)
    assert SUITE.score(item, Answer(f"They are {item.target[0]}.")).value == 1
    assert SUITE.score(item, Answer("I do not know")).value == 0
    graded = [Graded("a", 0, 1.0, data={"task": "vt"}), Graded("b", 0, 0.5, data={"task": "vt"})]
    assert SUITE.summary is not None
    assert SUITE.summary(graded) == {"vt": 0.75}
    assert len([*SUITE.generate(Generate(3, count=26, lengths=(2000,)))]) == 26
