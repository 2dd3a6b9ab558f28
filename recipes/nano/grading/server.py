"""`dsv4 serve` as a child process on a free loopback port."""

import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_READY = re.compile(r"ready in .* (http://\S+) ")
_LINES = 30  # of what the server said, for the message when it does not start
_DRAIN = 20.0  # seconds


@contextmanager
def served(folder: Path, flags: Sequence[str] = (), *, seconds: float = 300.0) -> Iterator[str]:
    """The address of a server of this folder, which ends with the block. flags: more of `dsv4 serve`.

    Temperature counts while the model thinks, and nothing is written to the user's ledger. Raises RuntimeError with
    the server's last lines where it does not get ready within `seconds`.
    """
    command = [sys.executable, "-m", "dsv4.cli", "serve", str(folder), "--port", "0"]
    command += ["--free-sampling", "--any-model", "--ledger", "none", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    said: deque[str] = deque(maxlen=_LINES)
    found: list[str] = []
    told = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                said.append(line)
                if not found and (ready := _READY.search(line)):
                    found.append(ready[1])
                    told.set()
        told.set()  # it has ended

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        told.wait(seconds)
        if not found:
            raise RuntimeError(f"{' '.join(command)} did not start:\n{''.join(said)}")
        yield found[0]
    finally:
        _end(process)
        reader.join(5)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_DRAIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
