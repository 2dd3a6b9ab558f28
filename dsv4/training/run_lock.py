"""One owner of a run's folder: a second process that would write into it is refused."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Self

LOCK_FILE = "run.lock"


class RunLock:
    """Held while entered, and until the process is gone, kill -9 included: the system keeps it, not the file.

        with RunLock(folder): ...

    Raises ValueError naming the owner when another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: int | None = None

    def __enter__(self) -> Self:
        opened = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(opened, 4096)
            os.close(opened)
            raise ValueError(f"{self.folder} is in use by {_named(owner)}: one run at a time writes into it") from None
        self._opened = opened
        os.ftruncate(opened, 0)
        os.pwrite(opened, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        return self

    def __exit__(self, *error: object) -> None:
        # the file stays: whoever removes it could remove the next owner's
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None


def _named(owner: bytes) -> str:
    try:
        known = json.loads(owner)
        return f"process {known['pid']} on {known['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
