"""One owner of a run's folder: a second process that would write into it is refused."""

import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from dsv4.files import locked

LOCK_FILE = "run.lock"


class RunLock:
    """Held while entered, and until the process is gone, kill -9 included: the system keeps it, not the file.

        with RunLock(folder): ...

    Raises ValueError naming the owner when another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._file = folder, folder / LOCK_FILE
        self._held = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(locked(self._file, self._refuse, without=_raise))
            self._file.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def _refuse(self) -> None:
        owner = self._file.read_bytes()
        raise ValueError(f"{self.folder} is in use by {_named(owner)}: one run at a time writes into it")


def _raise(error: OSError) -> None:
    """Two runs in one folder would mix their files, so there is none without locks."""
    raise error


def _named(owner: bytes) -> str:
    try:
        known = json.loads(owner)
        return f"process {known['pid']} on {known['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
