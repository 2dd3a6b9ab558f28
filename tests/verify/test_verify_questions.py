"""`dsv4 verify --questions`: the questions of BFCL's files, what they measure, and what is no such file."""

import json
from pathlib import Path
from typing import Any

import pytest

from dsv4.cli.verify import verify as command
from dsv4.encoding import Tokenizer
from dsv4.verify.bfcl_file import read_questions
from dsv4.verify.endpoint import Endpoint
from dsv4.verify.findings import CheckResult
from dsv4.verify.questions import questions
from dsv4.verify.run import verify
from dsv4.verify.schema import misfit
from dsv4.verify.settings import Settings
from tests.conftest import ROOT
from tests.server.conftest import listening
from tests.server.models import block
from tests.verify.pretend import PretendServer

PARAMETERS = {
    "type": "dict",
    "properties": {"number": {"type": "integer"}, "scale": {"type": "float"}},
    "required": ["number"],
}
FACTORIAL = {"name": "math.factorial", "description": "Factorials.", "parameters": PARAMETERS}
CALLED = ("What is the factorial of five?", "What is the factorial of nine?")
QUIET = "Who has written the Odyssey?"


def row(number: int, text: str, category: str = "simple_python", **more: Any) -> str:
    raw = {"id": f"{category}_{number}", "question": [[{"role": "user", "content": text}]], "function": [FACTORIAL]}
    return json.dumps({**raw, **more})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    system = [[{"role": "system", "content": "Be exact."}, {"role": "user", "content": CALLED[1]}]]
    lines = [row(0, CALLED[0]), "", row(1, "", question=system), row(0, QUIET, "live_irrelevance")]
    path = tmp_path / "BFCL_v4_some.json"
    path.write_text("\n".join(lines) + "\n")
    return path


def calls_of(server: PretendServer, file: Path) -> tuple[CheckResult, dict[str, float], list[str]]:
    with listening(server) as url:  # type: ignore[arg-type]
        report = verify(Endpoint(url), Settings(only=("calls",), questions=tuple(read_questions(file))))
    (result,) = report.results
    return result, {m.name: m.value for m in result.measures}, [found.code for found in report.faults]


def server_that_calls(called: dict[str, list[tuple[str, dict[str, Any]]]]) -> PretendServer:
    own = {question.text: [*question.wanted] for question in questions()}
    return PretendServer(Tokenizer.load(ROOT / "models" / "nano"), {**own, **called})


def test_questions_of_a_file_are_read(file: Path) -> None:
    first, second, third = read_questions(file)
    assert (first.text, first.needs_call, third.needs_call) == (CALLED[0], True, False)
    assert [message["role"] for message in second.messages] == ["system", "user"]
    (tool,) = first.tools
    assert tool["function"]["name"] == "math_factorial"
    assert tool["function"]["parameters"]["type"] == "object"
    assert tool["function"]["parameters"]["properties"]["scale"]["type"] == "number"


def test_they_are_asked_and_measured(file: Path) -> None:
    right: Any = [("math_factorial", {"number": 5})]
    result, measures, faults = calls_of(server_that_calls(dict.fromkeys(CALLED, right)), file)
    assert (faults, result.skipped) == ([], [])
    assert measures["questions-trigger-f1"] == measures["questions-schema-valid"] == measures["trigger-f1"] == 1
    # one of two is called, and so is the one that needs none
    _, measures, faults = calls_of(server_that_calls({CALLED[0]: right, QUIET: right}), file)
    assert faults == []
    assert measures["questions-trigger-f1"] == pytest.approx(0.5)
    assert measures["trigger-f1"] == measures["exact"] == 1


def test_their_answers_are_judged(file: Path) -> None:
    """Calls of a tool that is not there, written by the model and only for these questions."""
    server = server_that_calls({text: [("math_factorial", {"number": 5})] for text in CALLED})
    server.model.block = lambda *calls: block(*calls).replace("math_factorial", "math_other")
    with listening(server) as url:  # type: ignore[arg-type]
        report = verify(Endpoint(url), Settings(only=("calls",), questions=tuple(read_questions(file))))
    assert report.faults == []
    assert report.mistakes
    assert all("factorial" in found.reproduce for found in report.mistakes)


@pytest.mark.parametrize("items", [True, [{"type": "string"}], {"type": "string"}])
def test_schemas_of_any_form_are_compared(tmp_path: Path, items: object) -> None:
    """A file may hold what the questions of this package do not, and no form of it ends the run."""
    values = {"type": "dict", "properties": {"values": {"type": "array", "items": items}}}
    file = tmp_path / "lists.jsonl"
    file.write_text(row(0, "Sort 3 and 1.", function=[{"name": "sort", "parameters": values}]))
    (tool,) = read_questions(file)[0].tools
    wrong = misfit({"values": [3, 1]}, tool["function"]["parameters"])
    assert wrong == ("values[0] is integer, not string" if isinstance(items, dict) else "")


def test_without_a_question_that_needs_a_call(tmp_path: Path) -> None:
    only = tmp_path / "quiet.jsonl"
    only.write_text(row(0, QUIET, "irrelevance"))
    _, measures, _ = calls_of(server_that_calls({}), only)
    assert measures["questions-called"] == 0
    assert "questions-trigger-f1" not in measures


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nothing", "no question of BFCL's form"),
        ("[1]", "no question"),
        (json.dumps({"id": "simple_0", "ground_truth": []}), "KeyError: 'question'"),
        (row(0, "x", function=[]), "needs messages and functions"),
        (row(0, "x", question=[[], []]), "too many values"),
    ],
)
def test_what_is_no_question_is_named(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text(f"{row(0, 'Hi')}\n{line}\n")
    with pytest.raises(ValueError, match=rf"--questions .*wrong.jsonl, line 2: .*{problem}"):
        command("http://127.0.0.1:1", questions=[file])
    file.write_text("\n")
    with pytest.raises(ValueError, match="has no questions"):
        read_questions(file)
