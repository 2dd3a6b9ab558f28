"""Running a program that a model wrote: a process of its own with limits, ended as a whole.

The limits are the system's (`setrlimit`): memory, processor seconds, size of files, open files, processes. The clock
and the size of the output are watched from here. Where the system allows it the process has no network: it gets a
network namespace of its own, which is empty; `isolated` tells whether it does. It is no protection against a program
that looks for holes in the system: run such programs in a container or a virtual machine (report, DSec).
"""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MEBIBYTE = 2**20
_MARK = "DSV4_SANDBOX"
_LAUNCH = Path(__file__).with_name("child.py")


@dataclass(frozen=True, slots=True)
class Limits:
    """seconds: of the clock. cpu_seconds: of the processor, for each process. memory: MiB of address space of each
    process. output: bytes of standard output and error together. file: bytes of the largest file. processes: of the
    program, threads included. Raises ValueError naming the field."""

    seconds: float = 5.0
    cpu_seconds: int = 5
    memory: int = 512
    output: int = 16_384
    file: int = MEBIBYTE
    processes: int = 8

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Ran:
    """output: standard output and error in the order of writing, cut at the limit. code: of the exit, negative for a
    signal. reason: which limit ended it, or None."""

    output: str
    code: int
    reason: str | None = None

    @property
    def text(self) -> str:
        """What a tool's result says."""
        tail = [] if self.code == 0 and self.reason is None else [self.reason or f"exit code {self.code}"]
        return "\n".join([*([self.output.rstrip("\n")] if self.output.strip() else []), *tail]) or "(no output)"


@cache
def isolated() -> bool:
    """Whether programs have no network on this machine."""
    return subprocess.run([sys.executable, "-I", str(_LAUNCH), "probe"], capture_output=True).returncode == 0


class PythonSandbox:
    """Runs Python programs, at most `at_once` of them; the others wait."""

    def __init__(self, limits: Limits | None = None, at_once: int = 4) -> None:
        self.limits = limits or Limits()
        self._places = asyncio.Semaphore(at_once)

    async def run(self, code: str, given: str = "") -> Ran:
        """Run a program; `given` is its standard input. What it does wrong is in the result; raises OSError where no
        process can be started."""
        async with self._places:
            with (
                tempfile.TemporaryDirectory(prefix="dsv4-sandbox-", ignore_cleanup_errors=True) as folder,
                tempfile.TemporaryFile() as source,
            ):
                Path(folder, "main.py").write_text(code, encoding="utf-8", errors="surrogateescape")
                os.chmod(folder, 0o755)
                source.write(given.encode(errors="surrogateescape"))
                source.seek(0)
                return await self._run(folder, source.fileno())

    async def _run(self, folder: str, source: int) -> Ran:
        limits, mark = self.limits, secrets.token_hex(8)
        numbers = (limits.cpu_seconds, limits.memory * MEBIBYTE, limits.file, limits.processes)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-B", "-u", str(_LAUNCH), *map(str, numbers)),
            stdin=source,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "LANG": "C.UTF-8", _MARK: mark},
            start_new_session=True,
        )
        reason, output = None, bytearray()
        assert process.stdout is not None
        try:
            async with asyncio.timeout(limits.seconds):
                while piece := await process.stdout.read(4096):
                    output += piece
                    if len(output) > limits.output:
                        reason = f"ended: more than {limits.output} bytes of output"
                        break
                else:
                    await process.wait()
        except TimeoutError:
            reason = f"ended: it took more than {limits.seconds:g} s"
        finally:
            _end(process.pid, mark)
            # nobody reads it any more: `wait` waits for its end, which is not seen while it is full, or where a
            # grandchild holds it
            pipe = process._transport.get_pipe_transport(1)  # pyrefly: ignore
            if pipe is not None:
                pipe.close()
            code = await process.wait()
            process._transport.close()  # pyrefly: ignore
        if reason is None and code in (-signal.SIGXCPU, -signal.SIGKILL):
            reason = f"ended: more than {limits.cpu_seconds} s of processor time"
        return Ran(output[: limits.output].decode(errors="replace"), code, reason)


def _end(pid: int, mark: str) -> None:
    """Kill the program's process group, and what has left it but still has the mark in its environment."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    wanted = f"{_MARK}={mark}".encode()
    for _ in range(20):  # what is killed may have made others meanwhile
        left = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _environment(p).find(wanted) >= 0]
        for other in left:
            with suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        if not left:
            return


def _environment(process: Path) -> bytes:
    with suppress(OSError):
        return (process / "environ").read_bytes()
    return b""
