"""Programs of a model: blocks in an answer, and what passes which test."""

from dataclasses import replace
from pathlib import Path

import pytest

from dsv4.evals.code_answers import blocks, function_block, last_block
from dsv4.evals.code_tests import (
    LIMITS,
    CodeTest,
    NotIsolatedError,
    Passed,
    run_function,
    run_program,
    run_unit_tests,
    same_output,
)
from dsv4.sandbox.python import isolated

runs = pytest.mark.skipif(not Path("/proc").is_dir() or not isolated(), reason="needs processes without network")
SUM = [CodeTest("1 2\n", "3\n"), CodeTest("-5\n5", "0")]
QUICK = replace(LIMITS, cpu_seconds=1)


def program(code: str, tests: list[CodeTest] = SUM) -> Passed:
    return run_program(code, tests, QUICK)


def test_blocks_of_an_answer() -> None:
    answer = "First:\n```python\na = 1\n```\nthen\n  ~~~\nb = '```'\n  ~~~\nand ```not this``` one\n```py\nc = 3"
    assert blocks(answer) == ["a = 1\n", "b = '```'\n"]
    assert last_block(answer) == "b = '```'\n"
    assert last_block("no code") == ""
    nested = "````markdown\n```python\nx\n```\n````"
    assert blocks(nested) == ["```python\nx\n```\n"]


def test_the_block_of_a_function() -> None:
    answer = "```python\ndef f(x):\n    return x\n```\nUse it:\n```python\nprint(f(1))\n```"
    assert function_block(answer, "f") == "def f(x):\n    return x\n"
    assert function_block(answer, "g") == "print(f(1))\n"
    assert function_block("    return 1\n", "f") == "    return 1\n"
    assert function_block("```\ndef ff(): 0\n```\n```\ndef f(): 0\n```", "ff") == "def ff(): 0\n"


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1\n2\n", "1 \n 2", True),
        ("1 2.0", "1.00 2", True),
        ("1\n\n2", "1\n2", False),
        ("1 2", "1", False),
        ("yes", "YES", False),
        ("50000000000000001", "50000000000000000", False),
        ("", "", True),
        ("", "0", False),
        ("sNaN", "0", False),
    ],
)
def test_how_outputs_are_compared(output: str, expected: str, same: bool) -> None:
    assert same_output(output, expected) is same


@runs
@pytest.mark.parametrize(
    "code",
    [
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
        "if __name__ == '__main__':\n    print(sum(int(x) for x in open(0).read().split()))",
        "from __future__ import annotations\nprint(sum(map(int, sys.stdin.read().split())), file=sys.stdout)\nexit(1)",
        "import sys\nprint('debug', file=sys.stderr)\nprint(reduce(add, map(int, sys.stdin.read().split())))",
    ],
    ids=["plain", "main", "exit", "noisy"],
)
def test_programs_that_pass(code: str) -> None:
    assert program(code) == Passed(True, 2)


@runs
@pytest.mark.parametrize(
    ("code", "count", "why"),
    [
        ("print(3)", 1, "test 2 of 2: expected '0', got '3"),
        ("print(int(input()))", 0, "ValueError: invalid literal"),
        ("print(3", 0, "SyntaxError"),
        ("", 0, "expected '3"),
        ("while True: pass", 0, "ended: "),
        ("import os; print(3, flush=True); os._exit(0)", 0, "it ended before its last line"),
        ("with open('a', 'w') as f: f.write('123')", 0, "OSError"),
        ("import socket; socket.create_connection(('127.0.0.1', 1), 1)", 0, "Error"),
        ("x = bytearray(4 * 10**9)", 0, "MemoryError"),
        ("print('end-' + '0' * 32 + ' ended'); raise ValueError(3)", 0, "ValueError: 3"),
    ],
    ids=["wrong", "error", "syntax", "empty", "time", "exit", "files", "network", "memory", "mark"],
)
def test_programs_that_fail(code: str, count: int, why: str) -> None:
    result = program(code)
    assert (result.all, result.count) == (False, count)
    assert why in result.why


@runs
def test_functions() -> None:
    tests = [CodeTest("[1, 2]\n3", "[4, 5]"), CodeTest("[]\n1", "[]")]

    def ask(code: str) -> Passed:
        return run_function(code, "shift", tests, QUICK)

    method = "class Solution:\n    def shift(self, xs: List[int], by: int) -> List[int]:\n        {}\n"
    assert ask(method.format("return [x + by for x in xs]")).all
    assert ask("def shift(xs, by):\n    print('by', by)\n    return tuple(x + by for x in xs)").all
    assert "expected '[4, 5]', got '[1, 2]'" in ask(method.format("return xs")).why
    assert "TypeError" in ask(method.format("return set(xs)")).why
    assert "KeyError: 'shift'" in ask("def other(): pass").why
    assert "AttributeError" in ask("class Solution: pass").why
    assert ask("import os\ndef shift(xs, by):\n    print([4, 5], flush=True); os._exit(0)").all is False


@runs
@pytest.mark.parametrize(
    "code",
    [
        "def f(x):\n    sys.set_int_max_str_digits(0)\n    return 10 ** 5000",
        "json.dumps = lambda value: '[' * 99999\ndef f(x):\n    return x",
    ],
)
def test_a_result_that_cannot_be_read_is_wrong(code: str) -> None:
    assert not run_function(code, "f", [CodeTest("1", "1")], QUICK).all


@runs
def test_unit_tests() -> None:
    def ask(code: str) -> Passed:
        return run_unit_tests(code, "assert f(2) == 4\nassert f(3) == 9, 'nine'", QUICK)

    assert ask("def f(x):\n    return x * x") == Passed(True, 1)
    assert ask("def f(x):\n    return 2 * x") == Passed(False, 0, "AssertionError: nine")
    assert ask("if __name__ == '__main__':\n    raise ValueError\nf = lambda x: x ** 2").all
    assert not ask("import sys; sys.exit(0)").all
    assert not ask("import os; os._exit(0)").all


def test_without_isolation_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4.evals.code_tests.isolated", lambda: False)
    with pytest.raises(NotIsolatedError, match="without network"):
        program("print(3)")
    with pytest.raises(ValueError, match="at least one"):
        program("print(3)", [])
