"""Programs of a model against tests: each test is a process of its own in the sandbox, without network and files.

A program is judged by what it returns to us, never by its word: for tests of input and output, and for tests of a
function's result, the expected values stay outside of its process. Only unit tests (HumanEval) run beside the program,
as published; a program that ends before they do has not passed.

Limits of a test: 6 s of processor time (LiveCodeBench gives 6 s of the clock: here a busy machine does not decide),
two minutes by the clock, 2 GiB of memory, no file longer than a byte, 8 threads or processes. As many programs run at
once as there are processors, whatever the number of threads that call these functions.
"""

import asyncio
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from threading import BoundedSemaphore

from dsv4.sandbox.python import Limits, PythonSandbox, Ran, isolated

LIMITS = Limits(seconds=120.0, cpu_seconds=6, memory=2048, output=8 * 2**20, file=1, processes=8)
_PLACES = BoundedSemaphore(os.cpu_count() or 1)
# what LiveCodeBench lets a program use without importing it: names of these modules, then the modules
_KNOWN = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json",
)  # fmt: skip
_PREAMBLE = "".join(
    [
        *(f"from {name} import *\n" for name in (*_KNOWN, "builtins", "typing")),
        *(f"import {name}\n" for name in _KNOWN),
        "sys.setrecursionlimit(50000)\n",
    ]
)
# {mark}: a word that the program cannot know, on the line that tells how it ended
_DRIVER = """
import os as _os, sys as _sys
_os.dup2(_os.open(_os.devnull, _os.O_WRONLY), 2)
_names, _end = {{"__name__": {name!r}}}, "ended"
try:
{body}
except SystemExit:
    _end = {on_exit!r}
except BaseException as _error:
    _end = f"{{type(_error).__name__}}: {{_error}}"[:300]
_sys.stdout = _sys.__stdout__
print("\\n" + {mark!r} + _end, flush=True)
"""


@dataclass(frozen=True, slots=True)
class CodeTest:
    """given: standard input; for a function, its arguments, one JSON value a line. expected: standard output; for a
    function, its result as JSON."""

    given: str
    expected: str


@dataclass(frozen=True, slots=True)
class Passed:
    """Whether all tests passed, how many did before the first that did not, and why that one did not, or ""."""

    all: bool
    count: int
    why: str = ""


class NotIsolatedError(RuntimeError):
    """This system does not let a program run without network."""


def run_program(code: str, tests: Sequence[CodeTest], limits: Limits = LIMITS) -> Passed:
    """A program that reads standard input and writes standard output, up to the first test that fails."""
    return _all(code, tests, limits, None)


def run_function(code: str, name: str, tests: Sequence[CodeTest], limits: Limits = LIMITS) -> Passed:
    """A function, or a method of `class Solution` where the code has one, up to the first test that fails. A tuple is
    as good as a list; a result that is no JSON is wrong."""
    return _all(code, tests, limits, name)


def run_unit_tests(code: str, tests: str, limits: Limits = LIMITS) -> Passed:
    """Code, then tests that raise an error when they fail, in one module (HumanEval)."""
    ending, _ = _run([_exec(code), _exec(tests)], "", limits, name="answer", on_exit="SystemExit")
    return Passed(ending == "ended", int(ending == "ended"), "" if ending == "ended" else ending)


def same_output(output: str, expected: str) -> bool:
    """Whether outputs agree as LiveCodeBench compares them: line by line without spaces at the ends; lines that differ
    as text agree where both are numbers, equal one by one."""
    lines, wanted = ([line.strip() for line in text.strip().split("\n")] for text in (output, expected))
    if len(lines) != len(wanted):
        return False
    for line, right in zip(lines, wanted, strict=True):
        if line != right and (not (numbers := _numbers(line)) or numbers != _numbers(right)):
            return False
    return True


def _same_result(output: str, expected: str) -> bool:
    """Whether both are one JSON value; False where the program's is none, or one that cannot be read (its threads may
    write too, it may nest lists without end)."""
    try:
        found = json.loads(output)
    except (ValueError, RecursionError):
        return False
    return bool(found == json.loads(expected))


def _all(code: str, tests: Sequence[CodeTest], limits: Limits, function: str | None) -> Passed:
    if not tests:
        raise ValueError("tests: a problem needs at least one")
    for count, test in enumerate(tests):
        if why := _one(code, test, limits, function):
            return Passed(False, count, f"test {count + 1} of {len(tests)}: {why}")
    return Passed(True, len(tests))


def _one(code: str, test: CodeTest, limits: Limits, function: str | None) -> str:
    """Why the program fails the test; "" if it passes."""
    if function is None:
        ending, output = _run([_exec(_PREAMBLE), _exec(code)], test.given, limits, name="__main__")
        right = same_output(output, test.expected)
    else:
        call = (
            "import json as _json, sys as _sys\n"
            "_arguments = [_json.loads(line) for line in _sys.stdin.read().split(chr(10))]\n"
            f"_function = getattr(Solution(), {function!r}) if 'Solution' in globals() else globals()[{function!r}]\n"
            "_result = _json.dumps(_function(*_arguments))\n"
            "_sys.stdout = _sys.__stdout__\n"
            "print(chr(10) + _result)\n"
        )
        ending, output = _run([_exec(_PREAMBLE), _exec(code), _exec(call)], test.given, limits, name="answer")
        output = output.rstrip("\n").rpartition("\n")[2]
        right = ending == "ended" and _same_result(output, test.expected)
    if ending != "ended":
        return ending
    return "" if right else f"expected {_short(test.expected)}, got {_short(output)} for {_short(test.given)}"


def _exec(code: str) -> str:
    return f"exec(compile({code!r}, 'answer.py', 'exec'), _names)"


def _run(steps: Sequence[str], given: str, limits: Limits, *, name: str, on_exit: str = "ended") -> tuple[str, str]:
    """How the program ended ("ended", or what went wrong), and what it wrote before."""
    if not isolated():
        raise NotIsolatedError("programs of a model run only without network, which this system does not allow here")
    mark = f"end-{secrets.token_hex(16)} "
    body = "\n".join(f"    {step}" for step in steps)
    driver = _DRIVER.format(mark=mark, name=name, body=body, on_exit=on_exit)
    with _PLACES:
        ran = asyncio.run(PythonSandbox(limits).run(driver, given))
    output, found, ending = ran.output.rpartition("\n" + mark)
    return (ending.rstrip("\n"), output) if found else (_broken(ran), ran.output)


def _broken(ran: Ran) -> str:
    return ran.reason or f"it ended before its last line, exit code {ran.code}"


def _numbers(line: str) -> list[Decimal]:
    """The numbers of a line of nothing else; none if it holds something else."""
    try:
        numbers = [Decimal(part) for part in line.split()]
    except InvalidOperation:
        return []
    return numbers if all(number.is_finite() for number in numbers) else []  # a signalling NaN cannot be compared


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:60]} ... {text[-50:]}")
