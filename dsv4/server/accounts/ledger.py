"""The ledger of usage: an SQLite file with one row per day (UTC), key and model.

A thread of its own writes it, so that no answer waits for the disk. It holds the names of keys, not the keys.
"""

import os
import queue
import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dsv4.observe import log
from dsv4.server.wire.names import short_name

OFF = "none"
BUSY_SECONDS = 10.0
RETRY_SECONDS = 10.0
# models of one key and day that have rows of their own; later ones share the row OTHER
MOST_MODELS, OTHER = 100, "other"
MOST_SEEN = 10_000
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
    """The default file of the ledger, in the user's data folder."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "dsv4" / "usage.sqlite"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and cost of one request or of many. day: as 2026-11-22; key: a name, "" without keys; cost: US dollars.

    `prompt` includes the cached tokens, `completion` those of the reasoning.
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


NAMES = ", ".join(item.name for item in fields(Usage))


class Ledger:
    """Adds requests to a file in a thread of its own. `close` writes the queued ones.

    The file and a folder made for it are the user's alone. Rows that cannot be written wait and are tried again every
    `retry` seconds. Raises OSError if the file cannot be opened as a ledger.
    """

    def __init__(self, file: Path, *, retry: float = RETRY_SECONDS) -> None:
        self.file, self._retry = file, retry
        try:
            _make_private(file)
            with closing(_connect(file)) as connection, connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(SCHEMA)
                # a damaged file, or one with other columns, is refused at the start
                found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise sqlite3.DatabaseError(found)
                connection.execute(f"SELECT {NAMES} FROM usage LIMIT 1").fetchone()
        except (sqlite3.Error, OSError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise OSError(f"{file}: cannot be used as a ledger ({why})") from error
        self._queue: queue.SimpleQueue[Usage | None] = queue.SimpleQueue()
        # by day, key and model: a full disk does not fill the memory as well
        self._pending: dict[tuple[str, str, str], Usage] = {}
        self._models: dict[tuple[str, str], set[str]] = {}
        self._thread = threading.Thread(target=self._run, name="dsv4-ledger", daemon=True)
        self._thread.start()

    def add(self, usage: Usage) -> None:
        """Count one request. Returns at once."""
        self._queue.put(usage)

    def close(self) -> int:
        """Write the queued requests and stop. Returns the number of rows that could not be written; each of them is a
        line of the log. A second call does nothing."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        return len(self._pending)

    def _run(self) -> None:
        with closing(_connect(self.file)) as connection:
            open_ = True
            while open_:
                taken = list(self._take())
                open_ = None not in taken
                for usage in taken:
                    if usage is not None:
                        self._keep(self._bounded(usage))
                self._write(connection)
        for usage in self._pending.values():
            log("usage_lost", file=str(self.file), **asdict(usage))

    def _keep(self, usage: Usage) -> None:
        place = (usage.day, usage.key, usage.model)
        old, new = self._pending.get(place), astuple(usage)
        counts = new[3:] if old is None else [a + b for a, b in zip(astuple(old)[3:], new[3:], strict=True)]
        self._pending[place] = Usage(*place, *counts)

    def _write(self, connection: sqlite3.Connection) -> None:
        if not self._pending:
            return
        try:
            with connection:
                connection.executemany(ADD, map(astuple, self._pending.values()))
            self._pending.clear()
        except sqlite3.Error as error:
            # the rows are kept in memory: the disk may have room again later
            log("ledger_failed", file=str(self.file), error=str(error), pending=len(self._pending))

    def _bounded(self, usage: Usage) -> Usage:
        """`usage` with a short name of its model, and one of few: clients choose these names freely."""
        model = short_name(usage.model)
        known = self._models.setdefault((usage.day, usage.key), set())
        if model not in known and len(known) >= MOST_MODELS:
            model = OTHER
        known.add(model)
        # drop the names of past days
        while len(self._models) > MOST_SEEN:
            del self._models[next(iter(self._models))]
        return replace(usage, model=model)

    def _take(self) -> Iterator[Usage | None]:
        """Wait for one request, or for the next try if rows are pending; then give all queued requests."""
        try:
            yield self._queue.get(timeout=self._retry if self._pending else None)
            while True:
                yield self._queue.get_nowait()
        except queue.Empty:
            return


def read_usage(file: Path, *, since: str = "", key: str | None = None) -> list[Usage]:
    """The rows of a ledger from day `since` on, oldest first. key: only the rows of this key.

    Raises FileNotFoundError, or ValueError for a file that is no ledger.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no ledger there yet; `dsv4 serve` writes one")
    where, values = "day >= ?", [since]
    if key is not None:
        where, values = f"{where} AND key = ?", [since, key]
    try:
        with closing(_connect(file)) as connection:
            rows: Sequence[tuple] = connection.execute(
                f"SELECT {NAMES} FROM usage WHERE {where} ORDER BY day, key, model", values
            ).fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"{file}: not a ledger ({error})") from error
    return [Usage(*row) for row in rows]


def first_day(since: str | None, now: datetime | None = None) -> str:
    """`since` as a day, "" without one. Raises ValueError for anything but a date or a number of days."""
    if since is None:
        return ""
    if match := re.fullmatch(r"(\d{1,4})d", since):
        return ((now or datetime.now(UTC)) - timedelta(days=int(match[1]))).date().isoformat()
    try:
        return datetime.strptime(since, "%Y-%m-%d").date().isoformat()
    except ValueError:
        raise ValueError(f"since must be a day as 2026-11-22 or a number of days as 7d, got {since!r}") from None


def _connect(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=BUSY_SECONDS)


def _make_private(file: Path) -> None:
    """Create the file and missing folders, readable by the user only; SQLite gives its other files the same mode."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    if file.is_file() and file.stat().st_uid == os.getuid():
        file.chmod(0o600)
