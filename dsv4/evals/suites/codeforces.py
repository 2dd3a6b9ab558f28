"""Codeforces: the rating of the report, from contests with their people's results (evaluation.md 7.1).

Published: 14 contests of division 1 with 114 problems (May to November 2025), 32 answers to each, 10 of them drawn; how
a rating comes of that is in `dsv4/evals/contest_rating.py`. Neither problems, tests nor standings are published: a user
brings them, one problem a line, and without them invented contests stand in. The language of answers is not published
either: here it is Python, asked in the words of LiveCodeBench and judged by tests of input and output in the sandbox
(no special judges: a problem with several right outputs does not belong into the data).

A line: {"contest", "problem", "points", "statement", "tests": [{"input", "output"}], "solvers": [[failed tries,
points]], "people": [[rating, points in the contest]]} (people: in one problem of a contest at least).
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from dsv4.evals.code_answers import last_block
from dsv4.evals.code_tests import CodeTest, run_program
from dsv4.evals.contest_rating import DRAWN, Contest, ContestProblem, mean_rating
from dsv4.evals.statistics import grouped
from dsv4.evals.suite import Answer, Ask, Generate, Graded, Item, Row, Score, Suite, modes
from dsv4.evals.suites.livecodebench import prompt

ANSWERS = 32
_RECORD = ("contest", "problem", "points", "solvers", "people", "problems")


def _join(rows: Sequence[Row]) -> list[Row]:
    """Each problem with the people of its contest, and with the number of its problems: some may be left out of a run.
    Raises ValueError for a contest without people."""
    people = {row["contest"]: row["people"] for row in rows if row.get("people")}
    problems = Counter(row["contest"] for row in rows)
    for row in rows:
        if row["contest"] not in people:
            raise ValueError(f"--data: people: contest {row['contest']!r} has none")
    return [{**row, "people": people[row["contest"]], "problems": problems[row["contest"]]} for row in rows]


def _item(row: Row, ask: Ask) -> Item:
    data = {name: row.get(name, []) for name in _RECORD}
    name, hidden = f"{row['contest']}-{row['problem']}", {"tests": row["tests"]}
    return Item(name, prompt(row["statement"]), None, group=row["contest"], data=data, hidden=hidden)


def _score(item: Item, answer: Answer) -> Score:
    code = last_block(answer.content)
    if not code.strip():
        return Score(0.0, "", "no complete block of code")
    passed = run_program(code, [CodeTest(test["input"], test["output"]) for test in item.hidden["tests"]])
    return Score(float(passed.all), code, passed.why)


def contests_of(graded: Sequence[Graded]) -> list[Contest]:
    """The contests whose problems were asked."""
    problems: dict[str, dict[str, ContestProblem]] = defaultdict(dict)
    people: dict[str, list[tuple[float, float]]] = {}
    for each in graded:
        data = each.data
        solvers = [(tries, points) for tries, points in data["solvers"]]
        problems[data["contest"]][data["problem"]] = ContestProblem(data["problem"], data["points"], solvers)
        people[data["contest"]] = [(rating, points) for rating, points in data["people"]]
    return [Contest(name, [*found.values()], people[name]) for name, found in problems.items()]


def _summary(graded: Sequence[Graded]) -> Mapping[str, float]:
    """The rating from the contests of which every problem was answered; of fewer than 10 answers to a problem, all are
    drawn, and the figure's name says how many. Raises ValueError where no contest is whole: a rank comes of the points
    in a whole contest."""
    if not graded:
        return {}
    asked = grouped(graded, lambda one: one.data["contest"])
    whole = [one for some in asked.values() if _is_whole(some) for one in some]
    answers: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for (contest, problem), some in grouped(whole, lambda one: (one.data["contest"], one.data["problem"])).items():
        answers[contest][problem] = (len(some), sum(one.value == 1 for one in some))
    if not answers:
        raise ValueError(
            f"a rating needs whole contests, and none of the {len(asked)} in this run has answers to all its problems"
        )
    drawn = min(DRAWN, *(total for problems in answers.values() for total, _ in problems.values()))
    name = "rating" if len(answers) == len(asked) else f"rating (whole contests: {len(answers)} of {len(asked)})"
    name += "" if drawn == DRAWN else f", {drawn} answers drawn"
    return {name: mean_rating(contests_of(whole), answers, drawn)}


def _is_whole(answers: Sequence[Graded]) -> bool:
    """Whether the answers to problems of one contest are to all of them."""
    return len({one.data["problem"] for one in answers}) == answers[0].data["problems"]


# statement, then input -> output
_PROBLEMS = (
    ("A line has two integers. Print their sum.", lambda a, b: a + b),
    ("A line has two integers a and b. Print the larger one.", max),
    ("A line has two integers a and b. Print a * a - b * b.", lambda a, b: a * a - b * b),
)


def _generate(wanted: Generate) -> Iterator[Row]:
    """Two contests of three small problems with 40 invented people each: to try the formula, not a model."""
    for contest in ("first", "second"):
        chance = random.Random(f"codeforces/{wanted.seed}/{contest}")
        solvers: list[list[tuple[int, float]]] = [[] for _ in _PROBLEMS]
        people = []
        for _ in range(40):
            rating, total = chance.randrange(1900, 3000), 0.0
            for place in range(len(_PROBLEMS)):
                if chance.random() < 1 / (1 + 10 ** ((2000 + 300 * place - rating) / 400)):
                    failed = min(chance.randrange(4), chance.randrange(4))
                    points = (place + 1) * 500 - 50 * failed - chance.randrange(150)
                    solvers[place].append((failed, points))
                    total += points
            people.append((rating, total))
        for place, (statement, right) in enumerate(_PROBLEMS):
            numbers = [(chance.randrange(-99, 99), chance.randrange(-99, 99)) for _ in range(3)]
            yield {
                "contest": contest, "problem": "ABC"[place], "points": (place + 1) * 500, "statement": statement,
                "tests": [{"input": f"{a} {b}\n", "output": f"{right(a, b)}\n"} for a, b in numbers],
                "solvers": solvers[place], "people": people if place == 0 else [],
            }  # fmt: skip


SUITE = Suite(
    name="codeforces",
    about="the rating in programming contests, by the report's formula",
    item=_item,
    score=_score,
    summary=_summary,
    join=_join,
    generate=_generate,
    samples=ANSWERS,
    files=("codeforces*.jsonl", "*.jsonl"),
    published=(
        *modes("V4-Pro", "report, table 7", None, 2919, 3206, setting="14 contests that are not published"),
        *modes("V4-Flash", "report, table 7", None, 2816, 3052, setting="14 contests that are not published"),
    ),
)
