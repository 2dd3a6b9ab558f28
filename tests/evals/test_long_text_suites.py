"""MRCR, CorpusQA and the needle: what is made has its answer in it, and answers are graded as published."""

import json

import pytest

from dsv4.evals.needle_conversations import needle_conversation, ordinal
from dsv4.evals.suite import Answer, Ask, Generate, Graded, Mode, Row, Suite
from dsv4.evals.suites import corpusqa, mrcr, needle
from dsv4.evals.suites.corpusqa import extracted, same
from dsv4.evals.suites.mrcr import ratio
from dsv4.evals.table_corpus import QUESTIONS, corpus_row

ASK = Ask(Mode.HIGH, 1, 7)


def words(text: str) -> int:
    return len(text.split())


def rows_of(suite: Suite, **more: object) -> list[Row]:
    assert suite.generate is not None
    return [*suite.generate(Generate(5, **more))]  # pyrefly: ignore


def test_the_published_grade_of_mrcr() -> None:
    assert ratio("abXhello world", "abXhello world", "abX") == 1
    assert ratio("hello world", "abXhello world", "abX") == 0
    assert ratio(" abXhello world", "abXhello world", "abX") == 0
    assert ratio("abXhello", "abXhello world", "abX") == pytest.approx(2 * 5 / 16)
    assert ratio("abX", "abXhello", "abX") == 0


def test_conversations_have_equal_requests_and_one_answer() -> None:
    row = needle_conversation(3000, 8, words, "seed")
    messages = json.loads(row["prompt"])
    question = messages[-1]["content"]
    place = row["desired_msg_index"]
    request = messages[place - 1]["content"]
    same_requests = [i for i, message in enumerate(messages) if message["content"] == request]
    wanted = same_requests.index(place - 1) + 1
    assert len(same_requests) == 8
    assert f"to the {ordinal(wanted)} (1 indexed) {request.removeprefix('write a ')}" in question
    assert row["answer"] == row["random_string_to_prepend"] + messages[place]["content"]
    assert len({message["content"] for message in messages if message["role"] == "assistant"}) * 2 + 1 == len(messages)
    assert 2800 <= words(row["prompt"] + row["answer"]) <= 3000
    with pytest.raises(ValueError, match="too few"):
        needle_conversation(50, 8, words, "seed")


def test_ordinals() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 101, 112)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "101st", "112th",
    ]  # fmt: skip


def test_mrcr_as_a_suite() -> None:
    rows = rows_of(mrcr.SUITE, small=True)
    assert len(rows) == 4
    item = mrcr.SUITE.item(rows[0], ASK)
    assert item.group == "700"
    assert mrcr.SUITE.score(item, Answer(item.target)).value == 1
    wrong = mrcr.SUITE.score(item, Answer("Sure! " + item.target))
    assert (wrong.value, wrong.figures) == (0, {"mark": 0.0})
    real = {**rows[0], "n_needles": 8}
    del real["length"]
    assert mrcr.SUITE.item(real, ASK).group == "8 needles"
    assert mrcr.SUITE.keep is not None
    assert mrcr.SUITE.keep(real)
    assert not mrcr.SUITE.keep({**real, "n_needles": 2})


def test_mrcr_counts_by_the_published_lengths() -> None:
    def graded(tokens: int, value: float) -> Graded:
        return Graded("i", 0, value, prompt_tokens=tokens - 10, tokens=10)

    assert mrcr.SUITE.summary is not None
    found = mrcr.SUITE.summary([graded(5000, 1), graded(8192, 0), graded(8193, 0.5), graded(2**20, 0.25)])
    assert found == {"to 8K": 0.5, "to 16K": 0.5, "to 1M": 0.25}


def firms(prompt: str) -> dict[str, dict[str, int | str]]:
    """What the reports say, read back from their sentences."""
    import re

    found: dict[str, dict[str, int | str]] = {}
    for report in re.split(r"\n\n(?=Report )", prompt.partition("Report 1")[1] + prompt.partition("Report 1")[2]):
        report = report.partition("\n\nQuestion")[0]
        numbers = {
            "revenue": r"(?:Revenue of the year was|it took in|Sales came to) (\d+) million",
            "staff": r"(?:employs (\d+) people|(\d+) people worked|Staff: (\d+))",
            "founded": r"(?:founded in|goes back to|first year was) (\d+)",
        }
        values: dict[str, int | str] = {"branch": re.findall(r"trade is (\w+)", report)[0]}
        for key, pattern in numbers.items():
            match = re.search(pattern, report)
            assert match is not None
            values[key] = int(next(group for group in match.groups() if group))
        found[re.findall(r"Report \d+: (.+)", report)[0]] = values
    return found


def test_answers_follow_from_the_reports() -> None:
    made = {kind: corpus_row(2500, words, "seed", kind) for kind in range(len(QUESTIONS))}
    table = firms(made[0]["prompt"][0]["content"])
    assert len(table) > 20
    revenue = {name: int(firm["revenue"]) for name, firm in table.items()}
    assert made[0]["answer"] == max(revenue, key=lambda name: revenue[name])
    assert made[1]["answer"].split(", ") == sorted(revenue, key=lambda name: -revenue[name])[:3]
    branch = made[3]["question"].partition("firms in ")[2].partition(",")[0]
    assert made[3]["answer"] == str(sum(revenue[name] for name, firm in table.items() if firm["branch"] == branch))
    head = {name: revenue[name] / int(firm["staff"]) for name, firm in table.items()}
    assert made[5]["answer"] == max(head, key=lambda name: head[name])
    mean = sum(int(firm["staff"]) for firm in table.values()) / len(table)
    assert made[6]["answer"] == str(sum(int(firm["staff"]) > mean for firm in table.values()))


def test_how_lists_are_compared() -> None:
    assert same("[Ada Lim, Bo Ren]", "bo ren, ada lim", ordered=False)
    assert not same("Ada Lim, Bo Ren", "Bo Ren, Ada Lim", ordered=True)
    assert same("**1,234**.", "1234", ordered=False)
    assert same("1234.0", "1234", ordered=False)
    assert same("[]", "[]", ordered=False)
    assert not same("Ada Lim", "[]", ordered=False)
    assert not same("12", "123", ordered=False)
    assert extracted("so\nThe answer is: 5\nThe answer is: 6\n") == "6"
    assert extracted(" 7 ") == "7"


def test_corpusqa_as_a_suite() -> None:
    rows = rows_of(corpusqa.SUITE, small=True)
    for row in rows:
        item = corpusqa.SUITE.item(row, ASK)
        assert corpusqa.SUITE.score(item, Answer(f"Well.\nThe answer is: {item.target}")).value == 1
        assert corpusqa.SUITE.score(item, Answer("The answer is: none of them")).value == 0
    judge = corpusqa.SUITE.judge
    assert judge is not None
    asked = judge.prompt(item, Answer("The answer is: x"))
    assert "Answer 1: x\n" in asked
    assert judge.verdict("so [[YES]]").value == 1
    assert judge.verdict("[[NO]] or [[YES]]").value == 0
    real = {"id": "financial_en_12", "prompt": [{"role": "user", "content": "?"}], "question": "?", "answer": "[]"}
    assert corpusqa.SUITE.item(real, ASK).group == "financial_en"


def test_needles_lie_at_their_depth() -> None:
    rows = rows_of(needle.SUITE, lengths=(2000,), count_tokens=words)
    assert [row["depth"] for row in rows] == [*needle.DEPTHS]
    for row in rows:
        text = row["prompt"].partition("\n\n")[2].rpartition("\n\n")[0]
        before = text.partition("The code of the")[0]
        assert len(before) / len(text) == pytest.approx(row["depth"] / 100, abs=0.02)
        assert 1900 <= words(row["prompt"]) <= 2000
    item = needle.SUITE.item(rows[0], ASK)
    assert needle.SUITE.score(item, Answer(f"It is {int(item.target):,}.")).value == 1
    assert needle.SUITE.score(item, Answer("1234567")).value == 0
    assert needle.SUITE.summary is not None
    cells = [Graded("i", 0, v, data={"length": 4096, "depth": d}) for v, d in ((1.0, 0), (0.0, 50))]
    assert needle.SUITE.summary(cells) == {"length 4K": 0.5, "depth 0 %": 1.0, "depth 50 %": 0.0}
