"""Programs of a model: what they may not do ends them, and nothing of them stays."""

import asyncio
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dsv4.posttraining.python_tool import python_tool
from dsv4.sandbox.python import Limits, PythonSandbox, Ran, isolated
from tests.posttraining.policies import run

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
SMALL = Limits(seconds=3, cpu_seconds=1, memory=256, output=1000, file=10_000, processes=4)


def ran(code: str, **changes: Any) -> Ran:
    result = run(PythonSandbox(replace(SMALL, **changes)).run(code))
    patience = time.monotonic() + 10  # what is killed needs a moment on a busy machine
    while left_over() and time.monotonic() < patience:
        time.sleep(0.05)
    assert not left_over(), "nothing of it stays"
    return result


def left_over() -> list[str]:
    def of_sandbox(process: Path) -> bool:
        try:
            return b"DSV4_SANDBOX=" in (process / "environ").read_bytes()
        except OSError:
            return False

    return [p.name for p in Path("/proc").glob("[0-9]*") if of_sandbox(p)]


def test_a_program_prints() -> None:
    assert ran("print(6 * 7)") == Ran("42\n", 0)
    assert ran("import sys; print('é💡'); sys.stderr.write('warned')").output == "é💡\nwarned"
    assert ran("import math, json, decimal; print(math.isqrt(10))").output == "3\n"
    assert ran("").text == "(no output)"
    assert ran("open('a', 'w').write('x'); print(open('a').read(), __name__)").output == "x __main__\n"


def test_a_program_reads_what_it_is_given() -> None:
    read = "import sys; print(input(), sys.stdin.read().split(), sys.stdin.read() == '')"
    assert run(PythonSandbox(SMALL).run(read, "é\n1 2\n3")).output == "é ['1', '2', '3'] True\n"
    assert ran("import sys; print(repr(sys.stdin.read()))").output == "''\n"


def test_mistakes_are_told() -> None:
    wrong = ran("x = 1\nprint(x / 0)")
    assert wrong.code == 1
    assert wrong.text.endswith("ZeroDivisionError: division by zero\nexit code 1")
    assert "SyntaxError" in ran("x = = 1").output
    assert ran("import sys; sys.exit(3)").text == "exit code 3"
    assert ran("print('\\ud800')").code == 1


def test_an_endless_loop_is_ended_by_the_processor_limit() -> None:
    result = ran("print('on', flush=True)\nwhile True: pass", seconds=30)
    assert result.text == "on\nended: more than 1 s of processor time"


def test_a_program_that_sleeps_is_ended_by_the_clock() -> None:
    assert ran("import time; time.sleep(60)", seconds=0.5).text == "ended: it took more than 0.5 s"


def test_memory_is_limited() -> None:
    result = ran("x = bytearray(10 ** 9)")
    assert result.code == 1
    assert "MemoryError" in result.output
    assert "MemoryError" in ran("x = [0]\nwhile True: x += x", seconds=60, cpu_seconds=30).output


def test_output_is_limited() -> None:
    began = time.monotonic()
    result = ran("while True: print('x' * 100)", seconds=30, cpu_seconds=20)
    assert result.reason == "ended: more than 1000 bytes of output"
    assert len(result.output) == 1000
    assert time.monotonic() - began < 20


def test_output_that_nobody_reads_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is full stops reading, and then sees no end of the pipe."""
    started = partial(asyncio.create_subprocess_exec, limit=1)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", started)
    result = ran("while True: print('x' * 10_000)", seconds=30, cpu_seconds=20)
    assert result.reason == "ended: more than 1000 bytes of output"


def test_files_are_limited() -> None:
    assert "File too large" in ran("open('big', 'w').write('x' * 20_000)").output


BOMB = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            {leave}
            time.sleep(60)
            os._exit(0)
        made += 1
except OSError as error:
    print(made, type(error).__name__)
"""


@pytest.mark.parametrize("leave", ["pass", "os.setsid()"])
def test_a_fork_bomb_is_bounded_and_all_of_it_is_ended(leave: str) -> None:
    began = time.monotonic()
    result = ran(BOMB.format(leave=leave), seconds=2)
    made, error = result.output.split()
    assert error == "BlockingIOError"
    # other processes of the same user end and begin meanwhile; root gives the program a user of its own
    assert int(made) == 3 if os.getuid() == 0 else int(made) < 50
    assert time.monotonic() - began < 20


def test_there_is_no_network() -> None:
    if not isolated():
        pytest.skip("this system does not allow it")
    code = "import socket\ntry: socket.create_connection(('127.0.0.1', {port}))\nexcept OSError: print('no network')"

    async def ask() -> Ran:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            return await PythonSandbox(SMALL).run(code.format(port=server.sockets[0].getsockname()[1]))

    assert run(ask()).output == "no network\n"


def test_programs_see_neither_our_environment_nor_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    assert ran("import os; print(sorted(os.environ))").output == "['DSV4_SANDBOX', 'HOME', 'LANG', 'PATH']\n"
    assert ran("import os; print(os.listdir('.'))").output == "['main.py']\n"


def test_the_tool_tells_the_policy() -> None:
    tool = python_tool(PythonSandbox(SMALL))
    assert run(tool.run({"code": "print(1 + 1)"})) == "2"
    assert tool.name == "python"
    with pytest.raises(ValueError, match="code must be a string"):
        run(tool.run({"code": 3}))


def test_no_more_than_allowed_run_at_once_and_a_cancelled_one_is_ended() -> None:
    async def many() -> None:
        sandbox = PythonSandbox(SMALL, at_once=2)
        tasks = [asyncio.create_task(sandbox.run("import time; time.sleep(60)")) for _ in range(4)]
        while not left_over():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert len(left_over()) <= 2
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not left_over()

    run(many())


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="memory must be more than 0, got 0"):
        Limits(memory=0)
