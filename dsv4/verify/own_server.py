"""A server of ours for a model folder: `dsv4 serve` as a child process on a free loopback port."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_READY = re.compile(rb"ready in .* (http://\S+) ")
_DRAIN = 20.0  # seconds
_LINES = 30  # of what the server said, for the message when it does not start


class NotStartedError(RuntimeError):
    """The server did not get ready; the message has its last lines."""


@contextmanager
def own_server(
    folder: Path, flags: Sequence[str] = (), *, hidden: Collection[str] = (), seconds: float = 600.0
) -> Iterator[str]:
    """The address of a server of this folder, which ends with the block.

    flags: more of `dsv4 serve`. hidden: variables of the environment that the server does not get. Nothing is written
    to the user's ledger. Raises NotStartedError where it does not get ready within `seconds`.
    """
    command = [sys.executable, "-m", "dsv4.cli", "serve", str(folder), "--port", "0", "--ledger", "none", *flags]
    with tempfile.TemporaryFile() as said:
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
        try:
            yield _address(process, said.fileno(), time.monotonic() + seconds)
        finally:
            _end(process)


def _address(process: subprocess.Popen[bytes], said: int, until: float) -> str:
    """Wait for the line with the address."""
    while True:
        ended = process.poll() is not None  # before reading: all that it said is read then
        text = _whole(said)
        if ready := _READY.search(text):
            return ready[1].decode()
        if ended or time.monotonic() > until:
            lines = text.decode(errors="replace").splitlines()[-_LINES:]
            raise NotStartedError("the server of this folder did not start:\n" + "\n".join(lines))
        time.sleep(0.1)


def _whole(said: int) -> bytes:
    # NOTE: the child writes at the offset of the same open file: pread leaves it where it is
    return os.pread(said, 1 << 20, 0)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_DRAIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
