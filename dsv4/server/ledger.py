"""Who used how much: an SQLite file with one row per day, key and model. Days are those of UTC.

Requests are handed to a thread of its own, so that no answer waits for the disk. Keys appear by name only.
"""

import os
import queue
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from dsv4.observe import log

OFF = "none"
BUSY_SECONDS = 10.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    day TEXT, key TEXT, model TEXT, requests INTEGER, prompt INTEGER, cached INTEGER, completion INTEGER,
    reasoning INTEGER, cost REAL, PRIMARY KEY (day, key, model)
)"""
ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (day, key, model) DO UPDATE SET
    requests = requests + excluded.requests, prompt = prompt + excluded.prompt, cached = cached + excluded.cached,
    completion = completion + excluded.completion, reasoning = reasoning + excluded.reasoning,
    cost = cost + excluded.cost"""


def default_ledger() -> Path:
    """Where the ledger lies unless told otherwise: in the user's data folder."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "dsv4" / "usage.sqlite"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and cost of one request or of many. day: as 2026-11-22; key: a name, "" without keys; cost: US dollars.

    prompt counts the cached ones too, completion those of the reasoning.
    """

    day: str
    key: str
    model: str
    requests: int
    prompt: int
    cached: int
    completion: int
    reasoning: int
    cost: float


class Ledger:
    """Adds requests to a file from a thread of its own. Close it at the end: what is queued is written then.

    Raises OSError if the file cannot be opened as a ledger.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(_connect(file)) as connection, connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(SCHEMA)
        except sqlite3.Error as error:
            raise OSError(f"{file}: cannot be used as a ledger ({error})") from error
        self._queue: queue.SimpleQueue[Usage | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="dsv4-ledger", daemon=True)
        self._thread.start()

    def add(self, usage: Usage) -> None:
        """Count one request. Returns at once."""
        self._queue.put(usage)

    def close(self) -> None:
        """Write what is queued and stop. Does nothing the second time."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        pending: list[Usage] = []
        with closing(_connect(self.file)) as connection:
            while True:
                taken = list(self._take())
                pending += [usage for usage in taken if usage is not None]
                try:
                    with connection:
                        connection.executemany(ADD, map(astuple, pending))
                    pending.clear()
                except sqlite3.Error as error:
                    # the disk may have room again later; nothing is forgotten until then
                    log("ledger_failed", file=str(self.file), error=str(error), pending=len(pending))
                if None in taken:
                    return

    def _take(self) -> Iterator[Usage | None]:
        """Wait for one request; give it and whatever else is there."""
        yield self._queue.get()
        while True:
            try:
                yield self._queue.get_nowait()
            except queue.Empty:
                return


def read_usage(file: Path, *, since: str = "", key: str | None = None) -> list[Usage]:
    """The rows of a ledger from day `since` on, oldest first. key: only those of one.

    Raises FileNotFoundError, or ValueError for a file that is no ledger.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no ledger there yet; `dsv4 serve` writes one")
    names = ", ".join(item.name for item in fields(Usage))
    where, values = "day >= ?", [since]
    if key is not None:
        where, values = f"{where} AND key = ?", [since, key]
    try:
        with closing(_connect(file)) as connection:
            rows: Sequence[tuple] = connection.execute(
                f"SELECT {names} FROM usage WHERE {where} ORDER BY day, key, model", values
            ).fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"{file}: not a ledger ({error})") from error
    return [Usage(*row) for row in rows]


def _connect(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=BUSY_SECONDS)
