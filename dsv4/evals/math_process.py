"""math-verify in a child process: an expression such as 9^(9^(9^9)) takes for ever, and no signal ends it.

    python -m dsv4.evals.math_process

reads lines of JSON [right, found] and writes `true` or `false` for each.
"""

import atexit
import functools
import importlib.util
import json
import queue
import subprocess
import sys
import threading

SECONDS = 20.0  # for one comparison; the first one loads the library


def equal(right: str, found: str) -> bool:
    """Whether math-verify finds two expressions equal; False where it takes more than SECONDS. Raises ValueError
    without math-verify."""
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError("comparing expressions needs math-verify: pip install 'dsv4[eval]'")
    return _checker().equal(right, found)


@functools.cache
def _checker() -> "_Checker":
    checker = _Checker()
    atexit.register(checker.close)
    return checker


class _Checker:
    """One child for the whole process, started when it is needed, and again after one that took too long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def equal(self, right: str, found: str) -> bool:
        with self._lock:
            self._child = self._child or _Child()
            answer = self._child.ask(json.dumps([right, found]))
            if answer is None:
                self._end()
            return answer == "true"

    def close(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


class _Child:
    """The process, and a thread that reads its lines."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())
        self._lines.put("")  # it has ended

    def ask(self, line: str) -> str | None:
        """Its answer; None where it gives none within SECONDS, or has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            return self._lines.get(timeout=SECONDS) or None
        except (queue.Empty, OSError):
            return None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def main() -> None:
    """Answer lines until there are no more."""
    from math_verify import parse, verify  # pyrefly: ignore[missing-import]  (an extra)

    for line in sys.stdin:
        # no time limits of its own: on a busy machine they would decide, and the parent has one. Its types name no None
        boxed = [f"$\\boxed{{{text}}}$" for text in json.loads(line)]
        right, found = (parse(text, parsing_timeout=None) for text in boxed)  # pyrefly: ignore[bad-argument-type]
        print(json.dumps(bool(verify(right, found, timeout_seconds=None))), flush=True)


if __name__ == "__main__":
    main()
