"""Stored responses: an SQLite file with each response, the items it was made from and those it gave.

Responses that build on each other are one conversation. It is stored, counted, and dropped as a whole, because a later
response is of no use without the earlier ones. A key sees only its own.
"""

import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dsv4.observe import log
from dsv4.server.storage.folders import check_room, private_folder, storage_full
from dsv4.server.wire.errors import ApiError, show
from dsv4.server.wire.json import to_json

FILE = "responses.sqlite"
VERSION = 1
WHAT = "store"
BUSY_SECONDS = 10.0
DAY_SECONDS = 86_400
DEFAULT_DAYS, DEFAULT_MIB = 30, 1024
SCHEMA = """
CREATE TABLE IF NOT EXISTS conversations (id TEXT PRIMARY KEY, key TEXT, used INTEGER, bytes INTEGER);
CREATE INDEX IF NOT EXISTS by_use ON conversations (used);
CREATE INDEX IF NOT EXISTS by_key ON conversations (key, used);
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, key TEXT, previous TEXT, body BLOB, bytes INTEGER,
    conversation TEXT REFERENCES conversations ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS by_conversation ON responses (conversation);
CREATE TABLE IF NOT EXISTS items (
    response TEXT REFERENCES responses ON DELETE CASCADE, place INTEGER, output INTEGER, id TEXT, body BLOB,
    PRIMARY KEY (response, place)
);
CREATE INDEX IF NOT EXISTS by_id ON items (id);
"""
CHAIN = """
WITH RECURSIVE chain (id, previous, depth) AS (
    SELECT id, previous, 0 FROM responses WHERE id = :id AND key = :key
    UNION ALL
    SELECT responses.id, responses.previous, depth + 1 FROM responses JOIN chain ON responses.id = chain.previous
)"""
PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"}


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How much is kept. days: a conversation is dropped so long after its last response; bytes: of one key, the
    conversations that were not used for longest are dropped first."""

    days: int = DEFAULT_DAYS
    bytes: int = DEFAULT_MIB << 20


class StoredResponses:
    """The responses in `folder`. Any thread may call it; calls wait for each other.

    Every method takes the name of the client's key, and raises ApiError: 404 for a response that is not there, 507 for
    a full disk, 500 where the file cannot be read or written. Raises OSError if the folder cannot be used.
    """

    def __init__(
        self, folder: Path, limits: StoreLimits = StoreLimits(), clock: Callable[[], float] = time.time
    ) -> None:
        self.folder, self.limits, self._clock = folder, limits, clock
        self._lock = threading.Lock()
        file = folder / FILE
        try:
            private_folder(folder)
            self._connection = sqlite3.connect(file, timeout=BUSY_SECONDS, check_same_thread=False)
            file.chmod(0o600)
            for setting in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
                self._connection.execute(f"PRAGMA {setting}")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError(f"version {version}, this program reads {VERSION}")
            found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            self._connection.executescript(SCHEMA)
            self._connection.execute(f"PRAGMA user_version={VERSION}")
        except (sqlite3.Error, OSError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise OSError(f"{file}: cannot be used as a store ({why})") from error

    def check_room(self) -> None:
        """Raise ApiError 507 if the disk is full: before an answer is generated that could not be stored."""
        check_room(self.folder, WHAT)

    def save(self, key: str, response: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
        """Store a finished response. items: what the client sent with it, without the items of earlier responses."""
        body = to_json({name: value for name, value in response.items() if name != "output"})
        rows = [
            (output, part["id"], to_json(part))
            for output, group in enumerate((items, response["output"]))
            for part in group
        ]
        size = len(body) + sum(len(part) for _, _, part in rows)
        id, previous = response["id"], response["previous_response_id"]
        with self._transaction() as connection:
            found = connection.execute(
                "SELECT conversation FROM responses WHERE id = ? AND key = ?", [previous, key]
            ).fetchone()
            # the earlier responses may have been deleted meanwhile; this one then begins a conversation that is cut
            conversation = found[0] if found else id
            now = int(self._clock())
            connection.execute(
                "INSERT INTO conversations VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET used = excluded.used, bytes = bytes + excluded.bytes",
                [conversation, key, now, size],
            )
            row = [id, key, previous, body, size, conversation]
            connection.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)", row)
            connection.executemany(
                "INSERT INTO items VALUES (?, ?, ?, ?, ?)", [(id, place, *row) for place, row in enumerate(rows)]
            )
            self._drop_unused(connection, key, conversation)

    def get(self, key: str, id: str) -> dict[str, Any]:
        """A response as it was answered."""
        with self._transaction() as connection:
            found = connection.execute("SELECT body FROM responses WHERE id = ? AND key = ?", [id, key]).fetchone()
            if found is None:
                raise not_stored(id)
            output = "SELECT body FROM items WHERE response = ? AND output ORDER BY place"
            return {**msgspec.json.decode(found[0]), "output": _decoded(connection.execute(output, [id]))}

    def delete(self, key: str, id: str) -> None:
        """Forget a response. Later ones of its conversation stay, and cannot be continued any more."""
        with self._transaction() as connection:
            query = "DELETE FROM responses WHERE id = ? AND key = ? RETURNING conversation, bytes"
            found = connection.execute(query, [id, key]).fetchone()
            if found is None:
                raise not_stored(id)
            conversation, size = found
            connection.execute("UPDATE conversations SET bytes = bytes - ? WHERE id = ?", [size, conversation])
            left = "SELECT 1 FROM responses WHERE conversation = conversations.id"
            connection.execute(f"DELETE FROM conversations WHERE id = ? AND NOT EXISTS ({left})", [conversation])

    def inputs(self, key: str, id: str) -> list[dict[str, Any]]:
        """All items that a response was made from, those of earlier responses first."""
        return self._items(key, id, "WHERE depth > 0 OR NOT output")

    def conversation(self, key: str, id: str) -> list[dict[str, Any]]:
        """All items up to a response, its output included. Raises ApiError 404 also if an earlier one is missing."""
        return self._items(key, id, "")

    def item(self, key: str, id: str) -> dict[str, Any] | None:
        """The item with this id in any response, the newest of them; None for an unknown one."""
        query = (
            "SELECT items.body FROM items JOIN responses ON items.response = responses.id "
            "WHERE items.id = ? AND responses.key = ? ORDER BY items.rowid DESC LIMIT 1"
        )
        with self._transaction() as connection:
            return next(iter(_decoded(connection.execute(query, [id, key]))), None)

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        with self._lock:
            self._connection.close()

    def _items(self, key: str, id: str, where: str) -> list[dict[str, Any]]:
        names = {"id": id, "key": key}
        with self._transaction() as connection:
            first = f"{CHAIN} SELECT id, previous FROM chain ORDER BY depth DESC LIMIT 1"
            found = connection.execute(first, names).fetchone()
            if found is None:
                raise not_stored(id)
            if found[1] is not None:
                raise not_stored(found[1], f", on which {id} builds,")
            query = (
                f"{CHAIN} SELECT body FROM items JOIN chain ON response = chain.id {where} ORDER BY depth DESC, place"
            )
            return _decoded(connection.execute(query, names))

    def _drop_unused(self, connection: sqlite3.Connection, key: str, newest: str) -> None:
        """Drop conversations of `key` until the others fit, but never `newest`. Raises ApiError 507 if that one alone
        is too large."""
        query = "SELECT id, bytes FROM conversations WHERE key = ? ORDER BY id = ?, used"
        kept = connection.execute(query, [key, newest]).fetchall()
        size = sum(bytes for _, bytes in kept)
        for id, bytes in kept:
            if size <= self.limits.bytes:
                return
            if id == newest:
                problem = f"{WHAT}: this conversation has {size:,} bytes, and {self.limits.bytes:,} are kept for a key"
                raise storage_full(problem, "store_full")
            connection.execute("DELETE FROM conversations WHERE id = ?", [id])
            size -= bytes

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction, after old conversations were dropped."""
        oldest = int(self._clock()) - self.limits.days * DAY_SECONDS
        try:
            with self._lock, self._connection:
                self._connection.execute("DELETE FROM conversations WHERE used < ?", [oldest])
                yield self._connection
        except sqlite3.Error as error:
            log("storage_failed", what=WHAT, error=str(error), folder=str(self.folder))
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise storage_full(f"{WHAT}: the server's disk is full", "disk_full") from error
            raise ApiError(500, f"{WHAT}: {error}", code="storage_failed") from error


def not_stored(id: str, which: str = "") -> ApiError:
    """A 404 for a response that is not there."""
    return ApiError(404, f"Response {show(id)}{which} is not stored (any more)", param="id", code="not_found")


def with_ids(items: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items of a request in the form in which they are stored and listed: with ids, a text as a message."""
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    return [_with_id(item) for item in items]


def _with_id(item: Mapping[str, Any]) -> dict[str, Any]:
    kind, id = item.get("type"), item.get("id")
    kind = kind if isinstance(kind, str) else "message" if "role" in item else "item"
    id = id if isinstance(id, str) and id else f"{PREFIXES.get(kind, 'item')}_{uuid.uuid4().hex}"
    found = {**item, "type": kind, "id": id}
    if kind != "message":
        return found
    if isinstance(content := item.get("content"), str):
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        found["content"] = [{"type": part, "text": content, **({"annotations": []} if part == "output_text" else {})}]
    return {"status": "completed", **found}


def _decoded(rows: sqlite3.Cursor) -> list[dict[str, Any]]:
    return [msgspec.json.decode(body) for (body,) in rows]
