"""BFCL: are the right tools called with the right arguments (Berkeley function calling leaderboard v4, one turn).

Data: the files of the package `bfcl-eval` (`pip install --no-deps bfcl-eval`: its dependencies are not needed), a
question and its right calls in two files, joined by their id. The categories with Python types are asked; those of Java
and JavaScript write values as text of these languages, and those of several turns need its simulated programs: they are
left out. Calls come from the interface's `tool_calls`, names with dots as underscores, as its harness does. Published
grades: the calls are all right, or a question without a right tool gets no call ("relevance": gets one).

The leaderboard asks with temperature 0.001; the suite keeps it. Without the package, questions of `dsv4 verify` stand
in, with the exact values as the only right ones.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsv4.evals.call_match import calls_differ
from dsv4.evals.statistics import grouped, mean_value
from dsv4.evals.suite import Answer, Ask, Generate, Graded, Item, PackageData, Row, Score, Suite
from dsv4.verify.bfcl_file import openai_tool
from dsv4.verify.questions import questions

_CALLED = ("simple_python", "multiple", "parallel", "parallel_multiple")
_LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
_NO_CALLS = ("irrelevance", "live_irrelevance", "live_relevance")
CATEGORIES = (*_CALLED, *_LIVE, *_NO_CALLS)
_QUESTIONS = tuple(f"data/BFCL_v4_{name}.json" for name in CATEGORIES)
_ANSWERS = tuple(f"data/possible_answer/BFCL_v4_{name}.json" for name in (*_CALLED, *_LIVE))


def category(id: str) -> str:
    """The category in an id: `live_multiple_0-0-0` is of live_multiple."""
    return re.sub(r"_\d+(-\d+)*$", "", id)


def _join(rows: Sequence[Row]) -> list[Row]:
    """Questions with their right calls. Raises ValueError for a question that has none and should."""
    right = {row["id"]: row["ground_truth"] for row in rows if "ground_truth" in row}
    joined: list[Row] = []
    for row in rows:
        if "question" in row and category(row["id"]) in CATEGORIES:
            if row["id"] not in right and category(row["id"]) not in _NO_CALLS:
                raise ValueError(f"--data: question {row['id']} has no right answer; its file is in possible_answer/")
            joined.append({**row, "ground_truth": right.get(row["id"], [])})
    return joined


def _item(row: Row, ask: Ask) -> Item:
    return Item(
        row["id"],
        tuple(row["question"][0]),
        row["ground_truth"],
        group=category(row["id"]),
        tools=tuple(openai_tool(function) for function in row["function"]),
        hidden={"functions": row["function"]},
    )


def _score(item: Item, answer: Answer) -> Score:
    calls = [(call.name, _arguments(call.arguments)) for call in answer.calls]
    found = ", ".join(f"{call.name}({call.arguments})" for call in answer.calls)
    if item.group in _NO_CALLS:
        wanted = item.group.endswith("_relevance")
        why = (
            "" if bool(calls) == wanted else "a call was expected" if wanted else "no tool fits, none should be called"
        )
    else:
        why = calls_differ(item.hidden["functions"], calls, item.target)
    return Score(float(not why), found, why, {"answers with calls": float(bool(calls))})


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _summary(graded: Sequence[Graded]) -> Mapping[str, float]:
    """The leaderboard's means of categories: simple, multiple, parallel and both; the live ones by question."""
    groups = grouped(graded, lambda one: one.group)
    plain = [mean_value(groups[name]) for name in _CALLED if name in groups]
    live = [one for name in _LIVE for one in groups.get(name, ())]
    figures = {"mean of categories": sum(plain) / len(plain)} if plain else {}
    return figures | ({"live, mean of questions": mean_value(live)} if live else {})


def _generate(wanted: Generate) -> Iterator[Row]:
    """The questions of `dsv4 verify` in BFCL's form: made here, the same for every seed."""
    kinds = {"parallel": "parallel", "irrelevant": "irrelevance", "several tools": "multiple"}
    made: dict[str, int] = defaultdict(int)
    for question in questions():
        kind = kinds.get(question.kind, "multiple" if len(question.tools) > 1 else "simple_python")
        yield {
            "id": f"{kind}_{made[kind]}",
            "question": [[{"role": "user", "content": question.text}]],
            "function": [tool["function"] for tool in question.tools],
            "ground_truth": [{name: _right(arguments)} for name, arguments in question.wanted],
        }
        made[kind] += 1


def _right(arguments: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Exact arguments as right values, those inside of a dictionary too."""
    return {name: [_right(value) if isinstance(value, dict) else value] for name, value in arguments.items()}


SUITE = Suite(
    name="bfcl",
    about="the right tools called with the right arguments",
    item=_item,
    score=_score,
    summary=_summary,
    join=_join,
    generate=_generate,
    package=PackageData("bfcl-eval", "bfcl_eval", (*_QUESTIONS, *_ANSWERS)),
    files=("BFCL_v4_*.json",),
    temperature=0.001,
)
