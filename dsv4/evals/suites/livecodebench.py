"""LiveCodeBench: problems of programming contests by the date of the contest, judged by hidden tests (code generation).

Asked and judged as its harness does (github LiveCodeBench, lcb_runner): its system text and prompt for chat models, the
last block of code, all public and private tests, pass@1 as the mean over answers. `--since` and `--until` of the
contest's date keep problems that a model cannot have read: the report does not say which window its figures are of.
The data is `livecodebench/code_generation_lite` on the hub (test*.jsonl). Private tests are stored compressed and
pickled; a reader that accepts nothing but one text opens them.

Differences: each test is a process of its own, a test has 6 s of processor time rather than of the clock, and no test
writes files (`dsv4/evals/code_tests.py`).
"""

import base64
import io
import json
import pickle
import zlib
from typing import Any

from dsv4.evals.code_answers import last_block
from dsv4.evals.code_tests import CodeTest, run_function, run_program
from dsv4.evals.suite import Answer, Ask, Item, Row, Score, Suite, modes
from dsv4.evals.suites.humaneval import pass_figures

SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests. You will NOT return anything except "
    "for the program."
)
_STARTER = (
    "### Format: You will use the following starter code to write the solution to the problem and enclose your code "
    "within delimiters.\n```python\n{starter}\n```\n\n"
)
_STDIN = (
    "### Format: Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on "
    "the sample inputs). Enclose your code within delimiters as follows.\n```python\n# YOUR CODE HERE\n```\n\n"
)
_LONGEST = 2**30  # bytes of the tests of a problem, unpacked


def prompt(question: str, starter: str = "") -> tuple[dict[str, str], ...]:
    """The messages of a problem."""
    form = _STARTER.format(starter=starter) if starter else _STDIN
    text = f"### Question:\n{question}\n\n{form}### Answer: (use the provided format with backticks)\n\n"
    return ({"role": "system", "content": SYSTEM}, {"role": "user", "content": text})


def _item(row: Row, ask: Ask) -> Item:
    function = json.loads(row.get("metadata") or "{}").get("func_name") or ""
    # tests stay as they are stored: unpacked they can be large
    hidden = {"public": row["public_test_cases"], "private": row["private_test_cases"], "function": function}
    messages = prompt(row["question_content"], row.get("starter_code") or "")
    return Item(f"livecodebench-{row['question_id']}", messages, None, group=str(row["difficulty"]), hidden=hidden)


def _date(row: Row) -> str:
    return str(row["contest_date"])[:10]


class _TextOnly(pickle.Unpickler):
    """Opens a pickled text and nothing that could run."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"a text was expected, found {module_name}.{global_name}")


def stored_tests(stored: str) -> list[CodeTest]:
    """Tests as the data stores them: JSON, or JSON that was pickled, compressed and written in base64. Raises
    ValueError for anything else."""
    try:
        if not stored.lstrip().startswith("["):
            unpacked = zlib.decompressobj().decompress(base64.b64decode(stored), _LONGEST)
            stored = _TextOnly(io.BytesIO(unpacked)).load()
        tests = json.loads(stored)
        if not isinstance(tests, list):
            raise TypeError("a list was expected")
        return [CodeTest(str(each["input"]), str(each["output"])) for each in tests]
    except (ValueError, TypeError, KeyError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise ValueError(f"private_test_cases: the tests of a problem cannot be read: {error}") from None


def _score(item: Item, answer: Answer) -> Score:
    code = last_block(answer.content)
    if not code.strip():
        return Score(0.0, "", "no complete block of code")
    tests = [*stored_tests(item.hidden["public"]), *stored_tests(item.hidden["private"])]
    function = item.hidden["function"]
    passed = run_function(code, function, tests) if function else run_program(code, tests)
    return Score(float(passed.all), code, passed.why, {"share of tests": passed.count / len(tests)})


SUITE = Suite(
    name="livecodebench",
    about="problems of programming contests, judged by hidden tests in a sandbox",
    item=_item,
    score=_score,
    summary=pass_figures,
    date=_date,
    files=("test*.jsonl", "*.jsonl"),
    published=(
        *modes("V4-Pro", "report, table 7", 56.8, 89.8, 93.5, setting="contests of dates that are not published"),
        *modes("V4-Flash", "report, table 7", 55.2, 88.4, 91.6, setting="contests of dates that are not published"),
    ),
)
