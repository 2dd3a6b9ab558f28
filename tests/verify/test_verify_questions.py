"""`dsv4 verify --questions`: the questions of BFCL's files, what they measure, and what is no such file."""

import json
import re
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
FLOAT = {"type": "number", "format": "float", "description": "This is a float type value."}
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
        report = verify(Endpoint(url), Settings(only=("calls",), questions=tuple(read_questions([file])[0])))
    (result,) = report.results
    return result, {m.name: m.value for m in result.measures}, [found.code for found in report.faults]


def server_that_calls(called: dict[str, list[tuple[str, dict[str, Any]]]]) -> PretendServer:
    own = {question.text: [*question.wanted] for question in questions()}
    return PretendServer(Tokenizer.load(ROOT / "models" / "nano"), {**own, **called})


def test_questions_of_a_file_are_read(file: Path) -> None:
    (first, second, third), wrong = read_questions([file])
    assert wrong == []
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
        report = verify(Endpoint(url), Settings(only=("calls",), questions=tuple(read_questions([file])[0])))
    assert report.faults == []
    assert report.mistakes
    assert all("factorial" in found.reproduce for found in report.mistakes)


@pytest.mark.parametrize("items", [True, [{"type": "string"}], {"type": "string"}])
def test_schemas_of_any_form_are_compared(tmp_path: Path, items: object) -> None:
    """A file may hold what the questions of this package do not, and no form of it ends the run."""
    values = {"type": "dict", "properties": {"values": {"type": "array", "items": items}}}
    file = tmp_path / "lists.jsonl"
    file.write_text(row(0, "Sort 3 and 1.", function=[{"name": "sort", "parameters": values}]))
    (tool,) = read_questions([file])[0][0].tools
    wrong = misfit({"values": [3, 1]}, tool["function"]["parameters"])
    assert wrong == ("values[0] is integer, not string" if isinstance(items, dict) else "")


def test_without_a_question_that_needs_a_call(tmp_path: Path) -> None:
    only = tmp_path / "quiet.jsonl"
    only.write_text(row(0, QUIET, "irrelevance"))
    _, measures, _ = calls_of(server_that_calls({}), only)
    assert measures["questions-called"] == 0
    assert "questions-trigger-f1" not in measures


def of(parameters: object) -> str:
    return row(0, "Hi", function=[{"name": "go", "parameters": parameters}])


def prop(schema: object) -> str:
    return of({"type": "dict", "properties": {"a": schema}})


DEEP: Any = {"type": "string"}
for _ in range(60):
    DEEP = {"type": "array", "items": DEEP}
A = r"function\[0\]\.parameters\.properties\.a"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nothing", "the line must be a JSON object: "),
        ("[" * 100_000, "the line must be a JSON object, got one that is nested too deep"),
        ("[1]", r"the line must be a JSON object, got \[1\]"),
        (json.dumps({"id": "simple_0", "ground_truth": []}), "question is missing; it must be a list"),
        (row(0, "x", question=[[], []]), "question must have one turn, got 2"),
        (row(0, "x", question=[[]]), r"question\[0\] must be a list of at least one message, got \[\]"),
        (row(0, "x", question=["Hi"]), r"question\[0\] must be a list of at least one message, got 'Hi'"),
        (row(0, "x", question=[["Hi"]]), r"question\[0\]\[0\] must be a message, got 'Hi'"),
        (row(0, "x", question=[[{"role": "user", "content": None}]]), r"question\[0\]\[0\].content must be a text"),
        (row(0, "x", question=[[{"content": "x"}]]), r"question\[0\]\[0\].role is missing"),
        (row(0, "x", id=None), "id must be a text, got null"),
        (row(0, "x", function=[]), "function must have at least one function, got none"),
        (row(0, "x", function={"name": "go"}), "function must be a list of functions, got"),
        (row(0, "x", function=["go"]), r"function\[0\] must be a function, got 'go'"),
        (row(0, "x", function=[FACTORIAL, {}]), r"function\[1\].name is missing"),
        (row(0, "x", function=[{**FACTORIAL, "description": 5}]), r"function\[0\].description must be a text, got 5"),
        (of(None), r"function\[0\].parameters must be an object, got null"),
        (of({"type": "array"}), r"parameters.type must be \"dict\" or \"object\", got 'array'"),
        (of({"properties": None}), "parameters.properties must be an object of schemas, got null"),
        (of({"properties": {}, "required": None}), "parameters.required must be a list of names, got null"),
        (of({"properties": {}, "required": [["a"]]}), r"parameters.required must be a list of names, got \[\['a'\]\]"),
        (prop(5), rf"{A} must be a schema \(an object, true or false\), got 5"),
        (prop({"type": None}), rf"{A}.type must be the name of a type, or a list of at least one, got null"),
        (prop({"type": [["string"]]}), rf"{A}.type must be the name"),
        (prop({"type": []}), rf"{A}.type must be the name"),
        (prop({"enum": None}), rf"{A}.enum must be a list of at least one value, got null"),
        (prop({"anyOf": []}), rf"{A}.anyOf must be a list of at least one schema"),
        (prop({"anyOf": [True, None]}), rf"{A}.anyOf\[1\] must be a schema"),
        (prop({"type": "integer", "minimum": "3"}), rf"{A}.minimum must be a number, got '3'"),
        (prop({"type": "array", "maxItems": True}), rf"{A}.maxItems must be a whole number of at least 0, got true"),
        (prop({"type": "array", "items": "string"}), rf"{A}.items must be a schema"),
        (prop({"type": "dict", "properties": {"b": {"required": 1}}}), rf"{A}.properties.b.required must be a list"),
        (prop(DEEP), r"must not be deeper than 50 schemas"),
    ],
)  # fmt: skip
def test_what_is_no_question_is_named(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text(f"{row(0, 'Hi')}\n{line}\n{row(1, 'Hello')}\n")
    asked, (told,) = read_questions([file])
    assert [question.place for question in asked] == [f"{file}, line 1", f"{file}, line 3"]
    assert re.match(rf"{file}, line 2: .*{problem}", told)


@pytest.mark.parametrize(
    ("schema", "sent"),
    [
        ({"type": "dict", "properties": {"b": {"type": "float"}}}, {"type": "object", "properties": {"b": FLOAT}}),
        ({"type": "any"}, {"type": "string"}),
        ({"type": "HashMap"}, {"type": "object"}),
        ({"type": "Boolean"}, {"type": "string"}),  # as BFCL's harness sends a name that it does not know
        ({}, {"type": "string"}),
        (True, True),
        ({"type": ["float", "null"]}, {"type": ["number", "null"]}),
        ({"type": "tuple", "items": [{"type": "long"}]}, {"type": "array", "items": [{"type": "integer"}]}),
        ({"anyOf": [{"type": "dict"}, {"required": ["b"]}]}, {"anyOf": [{"type": "object"}, {"required": ["b"]}]}),
        ({"enum": [1, 2]}, {"enum": [1, 2]}),
    ],
)  # fmt: skip
def test_types_of_bfcl_become_those_of_json_schema(tmp_path: Path, schema: object, sent: object) -> None:
    file = tmp_path / "types.jsonl"
    file.write_text(prop(schema))
    ([question], told) = read_questions([file])
    assert told == []
    parameters = question.tools[0]["function"]["parameters"]
    assert parameters["properties"]["a"] == sent
    for value in (None, True, 3, 2.5, "x", "[" * 10_000, [1, [2]], {"b": [1]}):
        misfit({"a": value}, parameters)  # compares whatever a model wrote


def test_a_function_without_parameters_takes_no_arguments(tmp_path: Path) -> None:
    file = tmp_path / "none.jsonl"
    file.write_text(row(0, "Hi", function=[{"name": "go"}]))
    ([question], told) = read_questions([file])
    assert told == []
    assert question.tools[0]["function"]["parameters"] == {"type": "object", "properties": {}}


def test_values_of_any_depth_are_compared() -> None:
    """A model may write lists deeper than Python's calls may be, where the schema demands nothing of items."""
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    assert misfit({"a": deep}, {"properties": {"a": {"type": "array"}}}) == ""


def test_files_without_a_question_end_the_run_at_once(tmp_path: Path) -> None:
    file = tmp_path / "none.jsonl"
    file.write_text("\n")
    with pytest.raises(ValueError, match=r"--questions .*none.jsonl has no questions$"):
        command("http://127.0.0.1:1", questions=[file])
    file.write_text("# Notes\nof mine\n")
    with pytest.raises(ValueError, match=r"has no questions; the first of 2 wrong lines: .*line 1: the line must be"):
        command("http://127.0.0.1:1", questions=[file])


def test_wrong_lines_are_told_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of five lines two are no questions and the server refuses one; the others are asked, and all of it is told."""
    refused = row(2, "", question=[[{"role": "nobody", "content": "Hi"}]])
    lines = [row(0, CALLED[0]), "{", of({"required": None, "properties": {}}), refused, row(3, CALLED[1])]
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join(lines))
    server = server_that_calls({text: [("math_factorial", {"number": 5})] for text in CALLED})
    report, page = tmp_path / "report.json", tmp_path / "page.html"
    with listening(server) as url, pytest.raises(SystemExit) as ended:  # type: ignore[arg-type]
        command(url, only=["calls"], questions=[file], json=report, report=page)
    assert ended.value.code == 2
    told = capsys.readouterr()
    for text in (told.out, told.err, page.read_text()):
        assert f"{file}, line 2: the line must be a JSON object" in text
        assert f"{file}, line 3: function[0].parameters.required must be a list of names, got null" in text
    assert "2 lines of --questions are no questions" in told.out
    assert f"not checked: the question of {file}, line 4: status 400" in told.out
    found = json.loads(report.read_text())
    assert (found["exit_code"], found["faults"], len(found["wrong_lines"])) == (2, 0, 2)
    (measure,) = [one for one in found["results"][0]["measures"] if one["name"] == "questions-trigger-f1"]
    assert measure["meaning"].endswith("2 questions")


def test_a_question_at_which_the_server_fails_is_a_fault_and_the_others_are_asked(file: Path) -> None:
    server = server_that_calls({text: [("math_factorial", {"number": 5})] for text in CALLED})

    def script(prompt: Any, params: Any) -> list[int]:
        if CALLED[0] in server.model.tokenizer.decode(prompt):
            raise RuntimeError("planted")
        return server.model(prompt, params)

    server.script = script
    _, measures, faults = calls_of(server, file)
    assert faults == ["server-error"]
    assert measures["questions-trigger-f1"] == 1
