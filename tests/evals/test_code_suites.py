"""HumanEval, LiveCodeBench and Codeforces: stand-ins have answers that pass, and wrong ones fail."""

import base64
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from dsv4.evals.data import load
from dsv4.evals.suite import Answer, Ask, Generate, Graded, Item, Mode, Suite
from dsv4.evals.suites import codeforces, humaneval, livecodebench
from dsv4.evals.suites.humaneval import program
from dsv4.evals.suites.livecodebench import prompt, stored_tests
from dsv4.sandbox.python import isolated

runs = pytest.mark.skipif(not Path("/proc").is_dir() or not isolated(), reason="needs processes without network")


def items(suite: Suite) -> list[Item]:
    rows = load(suite, "stand-in", Generate(1)).rows
    return [suite.item(row, Ask(Mode.HIGH, 1, index)) for index, row in enumerate(rows)]


def fenced(code: str) -> Answer:
    return Answer(f"Here it is.\n```python\n{code}\n```\nDone.")


@runs
def test_the_written_solutions_of_humaneval_pass() -> None:
    for item in items(humaneval.SUITE):
        assert item.messages[0]["content"].endswith(item.hidden["prompt"])
        assert humaneval.SUITE.score(item, Answer(item.target)).value == 1, item.id


@runs
def test_answers_to_humaneval() -> None:
    item = items(humaneval.SUITE)[0]
    whole = fenced("def add_digits(n):\n    return sum(map(int, str(n)))")
    assert humaneval.SUITE.score(item, whole).value == 1
    wrong = humaneval.SUITE.score(item, fenced("def add_digits(n):\n    return n"))
    assert (wrong.value, wrong.why) == (0, "AssertionError: ")
    assert humaneval.SUITE.score(item, Answer("")).value == 0


def test_how_a_prompt_and_an_answer_are_joined() -> None:
    head = 'def f(x):\n    """Text."""\n'
    assert program(head, "    return x\n") == head + "    return x\n"
    assert program(head, "def f(x):\n    return x\n").endswith('"""\n    pass\n\ndef f(x):\n    return x\n')


SOLUTIONS = (
    "a, b = 1, 1\nfor _ in range(int(input())):\n    a, b = b, a + b\nprint(a)",
    "n = int(input())\nends = []\nfor _ in range(n):\n    a, b = map(int, input().split())\n"
    "    ends += [(a, 1), (b, -1)]\nmost = now = 0\nfor _, step in sorted(ends):\n    now += step\n"
    "    most = max(most, now)\nprint(most)",
    "for x in input().split():\n    print(float(x) / 2)",
    "class Solution:\n    def countPairs(self, numbers: List[int], k: int) -> int:\n        have = set(numbers)\n"
    "        return sum(x + k in have for x in numbers) if k else 0",
)


@runs
def test_right_programs_pass_livecodebench() -> None:
    for item, solution in zip(items(livecodebench.SUITE), SOLUTIONS, strict=True):
        score = livecodebench.SUITE.score(item, fenced(solution))
        assert (score.value, score.why) == (1, ""), item.id


@runs
def test_wrong_programs_do_not() -> None:
    item = items(livecodebench.SUITE)[0]
    score = livecodebench.SUITE.score(item, fenced("print({3: 3, 4: 5}.get(int(input())))"))
    assert score.value == 0
    assert score.figures == {"share of tests": 0.5}
    assert livecodebench.SUITE.score(item, Answer("```python\nprint(3)")).why == "no complete block of code"


def test_prompts_of_livecodebench() -> None:
    system, user = prompt("Q?")
    assert system["role"] == "system"
    assert user["content"].startswith("### Question:\nQ?\n\n### Format: Read the inputs from stdin")
    assert "```python\nclass S:\n```" in prompt("Q?", "class S:")[1]["content"]


def test_stored_tests_are_opened_but_run_nothing() -> None:
    def pack(value: object) -> str:
        return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()

    tests = json.dumps([{"input": "1", "output": "2", "testtype": "stdin"}])
    assert stored_tests(pack(tests)) == stored_tests(tests)
    assert stored_tests(tests)[0].expected == "2"

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, ("made",)

    for bad in (pack(Runs()), "not base64!", pack([1]), pack("{}")):
        with pytest.raises(ValueError, match="private_test_cases"):
            stored_tests(bad)
    assert not Path("made").exists()


def test_the_window_of_dates() -> None:
    def ids(since: str, until: str, suite: Suite = livecodebench.SUITE) -> list[str]:
        rows = load(suite, "stand-in", Generate(1), since=since, until=until).rows
        return [row["question_id"][-1] for row in rows]

    assert ids("", "") == ["0", "1", "2", "3"]
    assert ids("2026-02-08", "2026-02-08") == ["1", "2"]
    assert ids("2026-02-09", "") == ["3"]
    assert ids("", "2026-02-07") == ["0"]
    with pytest.raises(ValueError, match="--until must be a date"):
        ids("", "yesterday")
    with pytest.raises(ValueError, match="humaneval have no dates"):
        ids("2026-01-01", "", humaneval.SUITE)


@runs
def test_codeforces_programs() -> None:
    item = items(codeforces.SUITE)[1]
    assert codeforces.SUITE.score(item, fenced("print(max(map(int, input().split())))")).value == 1
    assert codeforces.SUITE.score(item, fenced("print(min(map(int, input().split())))")).value == 0
    assert codeforces.SUITE.score(item, Answer("no code")).value == 0


def test_every_problem_knows_the_people_of_its_contest() -> None:
    found = items(codeforces.SUITE)
    assert all(len(item.data["people"]) == 40 for item in found)
    assert found[0].data["people"] == found[2].data["people"] != found[3].data["people"]
    assert codeforces.SUITE.join is not None
    with pytest.raises(ValueError, match="people: contest 'x' has none"):
        codeforces.SUITE.join([{"contest": "x", "problem": "A"}])


def test_the_rating_of_a_run() -> None:
    def graded(values: dict[str, list[int]]) -> list[Graded]:
        people = [[1500.0, 900.0], [1500.0, 0.0]]
        data = {
            problem: {
                "contest": "c",
                "problem": problem,
                "points": 500,
                "solvers": [],
                "people": people,
                "problems": len(values),
            }
            for problem in values
        }
        return [
            Graded(f"c-{problem}", sample, float(value), data=data[problem])
            for problem, found in values.items()
            for sample, value in enumerate(found)
        ]

    assert codeforces.SUITE.summary is not None
    # 500 points of one problem solved at once: second of two people of 1500, half of whom are better
    assert codeforces.SUITE.summary(graded({"A": [1] * 10, "B": [0] * 10})) == {"rating": pytest.approx(1500, abs=0.01)}
    few = codeforces.SUITE.summary(graded({"A": [1, 1]}))
    assert few == {"rating, 2 answers drawn": pytest.approx(1500, abs=0.01)}
    both = codeforces.SUITE.summary(graded({"A": [1] * 12, "B": [1] * 12}))
    assert both["rating"] == pytest.approx(4000, abs=0.01)


def test_a_rating_needs_whole_contests() -> None:
    summary = codeforces.SUITE.summary
    assert summary is not None
    whole = items(codeforces.SUITE)
    graded = [Graded(item.id, 0, 0.0, data=item.data) for item in whole]
    assert list(summary(graded)) == ["rating, 1 answers drawn"]
    one = summary(graded[:4])
    assert one == {"rating (whole contests: 1 of 2), 1 answers drawn": summary(graded[:3])["rating, 1 answers drawn"]}
    with pytest.raises(ValueError, match="a rating needs whole contests, and none of the 2 in this run"):
        summary(graded[1:4])


def test_pass_at_k_of_a_run() -> None:
    graded = [Graded("a", n, float(n == 0)) for n in range(5)] + [Graded("b", n, 0.0) for n in range(5)]
    assert humaneval.pass_figures(graded) == {"pass@1": pytest.approx(0.1), "pass@5": pytest.approx(0.5)}
    assert humaneval.pass_figures([]) == {}
