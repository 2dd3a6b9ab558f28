"""Prefixes that outlive the process (report 5.2.2): page files and end files in a folder, and an SQLite index.

A file is written to a temporary name, synced, renamed, and then entered in the index. The index therefore names whole
files only, at whatever moment the process dies. Every file has a checksum, which is verified when the file is read.
The key of a file is a hash of the model's fingerprint, the owner and all tokens up to its end, so a page of another
model or owner cannot be found. Only the user of this process may read folder, files and index, because they hold
conversations.
"""

import errno
import hashlib
import os
import sqlite3
import stat
import threading
import time
import zlib
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dsv4.cache.spec import PAGE_TOKENS
from dsv4.cache.tree import token_key
from dsv4.files import rename, sync
from dsv4.observe import log

_MAGIC = b"dsv4\x01\x00\x00\x00"
_HEADER = len(_MAGIC) + 4
_STALE_SECONDS = 3600  # age at which temporary files of a dead process are deleted
_BATCH = 500
_PENDING = 1 << 28  # bytes in the queue above which `put_page` and `put_end` wait for the disk ...
_PATIENCE = 2.0  # ... at most so many seconds; then files are dropped until the queue is shorter
_RESERVE = 2**30  # bytes of the file system that stay free, at most a tenth of it
_BUSY_SECONDS = 0.5  # the longest wait of a reader for the index; the writer has its own thread and waits longer
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    key BLOB PRIMARY KEY, base BLOB, length INTEGER NOT NULL, bytes INTEGER NOT NULL, used REAL NOT NULL);
DROP INDEX IF EXISTS ends;
CREATE INDEX IF NOT EXISTS ends_by_length ON files (base, length) WHERE base IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_use ON files (used);
"""
# the distinct lengths of the ends behind one page, longest first; the query looks into the index once for each length
_LENGTHS = """
WITH RECURSIVE known(length) AS (
    SELECT MAX(length) FROM files WHERE base = ?1 AND length <= ?2
    UNION ALL
    SELECT (SELECT MAX(length) FROM files WHERE base = ?1 AND length < known.length) FROM known
    WHERE known.length IS NOT NULL)
SELECT length FROM known WHERE length IS NOT NULL
"""


class DiskBusyError(RuntimeError):
    """Another process holds the index at the moment; the index is not damaged."""


@dataclass(frozen=True, slots=True)
class HashChain:
    """The hash chain of a token sequence: one key for each full page, and one for the end (the rest of the tokens and
    the snapshot). Each key includes the key before it."""

    root: bytes
    pages: list[bytes]
    end: bytes
    length: int

    @property
    def base(self) -> bytes:
        """The key before the end."""
        return self.pages[-1] if self.pages else self.root


@dataclass(frozen=True, slots=True)
class StoredPrefix:
    """The bytes of a prefix on disk: full pages, and the end."""

    pages: list[bytes]
    end: bytes


@dataclass(frozen=True, slots=True)
class _FileWrite:
    key: bytes
    base: bytes | None  # the key before an end; None for a page
    length: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _Touch:
    """A use of these files, for the order of eviction."""

    keys: tuple[bytes, ...]
    when: float


@dataclass(slots=True)
class DiskCounts:
    """Events since the tier was opened. corrupt: files with a wrong checksum (deleted, never used). dropped: files that
    were not queued because the disk was too slow."""

    written: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    corrupt: int = 0
    failed_writes: int = 0
    dropped: int = 0
    evicted: int = 0


class DiskTier:
    """A folder of cached prefixes with a byte budget; the least recently used file is deleted first. Several processes
    may share it.

    The caller's thread reads, a thread of the tier writes. A slow disk delays an answer by two seconds at most, when
    256 MiB are in the queue. A tenth of the file system (at most 1 GiB) stays free, even if the budget is larger.
    fingerprint: identifies model and storage format; keys of different fingerprints differ.

    Raises ValueError for a budget under 1 MiB and for a folder that cannot be used. A later failure of a write is
    counted, and the first of a series is logged. Reading raises the errors of the file system and of SQLite, and
    DiskBusyError where the caller may try again.
    """

    def __init__(self, folder: Path, *, budget: int, fingerprint: str, page_tokens: int = PAGE_TOKENS) -> None:
        if budget < 2**20:
            raise ValueError(f"the disk budget must be at least 1 MiB, got {budget} bytes")
        self.folder, self.budget, self._page_tokens = folder, budget, page_tokens
        self._fingerprint = fingerprint
        self.counts = DiskCounts()
        self._lock, self._read_lock = threading.RLock(), threading.RLock()  # around the two connections
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = self._open_index()
            self._reader = sqlite3.connect(self._index, timeout=_BUSY_SECONDS, check_same_thread=False)
            self._sweep()
        except (OSError, sqlite3.Error) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ValueError(f"the folder for prefixes {str(folder)!r} cannot be used: {why}") from error
        self._queue: deque[_FileWrite | _Touch] = deque()
        self._pending: dict[bytes, int] = {}
        self._moved = threading.Condition()
        self._closing = self._behind = self._unwritable = False
        self._thread = threading.Thread(target=self._write_queue, name="dsv4-disk", daemon=True)
        self._thread.start()

    @property
    def total_bytes(self) -> int:
        """Bytes of all files in the index."""
        return self._rows("SELECT COALESCE(SUM(bytes), 0) FROM files")[0][0]

    def flush(self) -> None:
        """Wait until the queue is written."""
        with self._moved:
            self._moved.wait_for(lambda: not self._pending)

    def close(self) -> None:
        """Write the rest of the queue, end the thread and close the index."""
        with self._moved:
            self._closing = True
            self._moved.notify_all()
        self._thread.join()
        for connection in (self._reader, self._db):
            with suppress(sqlite3.Error):
                connection.close()

    def chain(self, tokens: Sequence[int], owner: str) -> HashChain:
        """The hash chain of these tokens."""
        key, width = token_key(tokens), self._page_tokens * 4
        root = last = hashlib.blake2b(
            f"{self._fingerprint}\0{owner}".encode("utf-8", "surrogatepass"), digest_size=20
        ).digest()
        pages = []
        for at in range(0, len(key) - width + 1, width):
            last = hashlib.blake2b(last + key[at : at + width], digest_size=20).digest()
            pages.append(last)
        rest = key[len(pages) * width :]
        return HashChain(root, pages, _end_key(last, rest), len(tokens))

    def has(self, key: bytes) -> bool:
        """Whether this file is stored or in the queue."""
        return key in self._pending or bool(self._rows("SELECT 1 FROM files WHERE key = ?", (key,)))

    def missing(self, keys: list[bytes]) -> set[bytes]:
        """The files that are neither stored nor in the queue."""
        # NOTE: the queue is read first: a file that is written after that is found in the index
        idle = [key for key in keys if key not in self._pending]
        return set(idle) - self._known(idle)

    def put_page(self, key: bytes, data: bytes) -> None:
        """Queue one full page. A failure of its write (a full disk) is counted and not raised."""
        self._enqueue(_FileWrite(key, None, 0, data))

    def put_end(self, chain: HashChain, data: bytes) -> None:
        """Queue the end of a prefix, after its pages; once it is written, `find` finds the prefix."""
        self._enqueue(_FileWrite(chain.end, chain.base, chain.length, data))

    def find(self, tokens: Sequence[int], owner: str) -> HashChain | None:
        """The longest stored prefix of these tokens whose pages are all in the index."""
        full = self.chain(tokens, owner)
        known = self._known(full.pages)
        whole = next((i for i, page in enumerate(full.pages) if page not in known), len(full.pages))
        bases = [full.root, *full.pages[:whole]]
        key = token_key(tokens)
        for base in reversed(self._with_ends(bases)):
            start = bases.index(base) * self._page_tokens
            lengths = [row[0] for row in self._rows(_LENGTHS, (base, len(tokens)))]
            ends = {length: _end_key(base, key[4 * start : 4 * length]) for length in lengths}
            stored = self._known(list(ends.values()))
            for length, end in ends.items():
                if end in stored:
                    return HashChain(full.root, full.pages[: length // self._page_tokens], end, length)
        return None

    def read(self, chain: HashChain) -> StoredPrefix | None:
        """The bytes of a prefix that `find` returned. None when a file is missing or damaged; that file is then
        deleted."""
        parts = []
        for key in (*chain.pages, chain.end):
            data = self._read(key)
            if data is None:
                # NOTE: not through the writer's connection, which may wait long for other processes
                with self._read_lock, suppress(sqlite3.Error), self._reader:
                    self._reader.execute("DELETE FROM files WHERE key = ?", (key,))
                with suppress(OSError):
                    self._path(key).unlink(missing_ok=True)
                return None
            parts.append(data)
        with self._moved:
            self._queue.append(_Touch((*chain.pages, chain.end), time.time()))
            self._moved.notify_all()
        return StoredPrefix(parts[:-1], parts[-1])

    def _with_ends(self, bases: list[bytes]) -> list[bytes]:
        """The keys behind which an end is stored, in their order."""
        found: set[bytes] = set()
        for at in range(0, len(bases), _BATCH):
            batch = bases[at : at + _BATCH]
            marks = ",".join(["(?)"] * len(batch))
            query = f"SELECT column1 FROM (VALUES {marks}) WHERE EXISTS (SELECT 1 FROM files WHERE base = column1)"
            found |= {row[0] for row in self._rows(query, batch)}
        return [base for base in bases if base in found]

    def _known(self, keys: list[bytes]) -> set[bytes]:
        known: set[bytes] = set()
        for at in range(0, len(keys), _BATCH):
            batch = keys[at : at + _BATCH]
            marks = ",".join("?" * len(batch))
            known |= {row[0] for row in self._rows(f"SELECT key FROM files WHERE key IN ({marks})", batch)}
        return known

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple]:
        try:
            with self._read_lock:
                return self._reader.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in _BUSY:
                raise DiskBusyError(str(error)) from error
            raise

    def _enqueue(self, task: _FileWrite) -> None:
        with self._moved:
            if task.key in self._pending or self._closing:
                return
            room = self._moved.wait_for(
                lambda: sum(self._pending.values()) < _PENDING, timeout=0 if self._behind else _PATIENCE
            )
            if room is self._behind:
                self._behind = not room
                log("prefix_disk_slow" if not room else "prefix_disk_caught_up", dropped=self.counts.dropped)
            if not room:
                self.counts.dropped += 1
                return
            self._pending[task.key] = len(task.data)
            self._queue.append(task)
            self._moved.notify_all()

    def _write_queue(self) -> None:
        while True:
            with self._moved:
                self._moved.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                task = self._queue.popleft()
            try:
                self._touch(task) if isinstance(task, _Touch) else self._write(task)
            except Exception as error:  # the border of the thread: without it the thread would end
                self._not_written(error)
            with self._moved:
                if isinstance(task, _FileWrite):
                    del self._pending[task.key]
                self._moved.notify_all()

    def _touch(self, task: _Touch) -> None:
        with self._lock, suppress(sqlite3.Error), self._db:
            # later pages get earlier times: they are evicted before the pages that they depend on
            self._db.executemany(
                "UPDATE files SET used = ? WHERE key = ?",
                [(task.when - i * 1e-6, key) for i, key in enumerate(task.keys)],
            )

    def _not_written(self, error: Exception) -> None:
        """Count a failed write; log the first of a series."""
        self.counts.failed_writes += 1
        if not self._unwritable:
            log("prefix_not_written", folder=str(self.folder), error=f"{type(error).__name__}: {error}")
        self._unwritable = True

    def _write(self, task: _FileWrite) -> None:
        path = self._path(task.key)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        size = len(task.data) + _HEADER
        try:
            self._make_room(size)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            with open(temporary, "wb", opener=_private) as file:
                file.write(_MAGIC + zlib.crc32(task.data).to_bytes(4, "little"))
                file.write(task.data)
                sync(file)
            rename(temporary, path)
            row = (task.key, task.base, task.length, size, time.time())
            with self._lock, self._db:
                self._db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)
        except (OSError, sqlite3.Error) as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._not_written(error)
            return
        if self._unwritable:
            log("prefix_written_again", folder=str(self.folder), failed_writes=self.counts.failed_writes)
        self._unwritable = False
        self.counts.written += 1
        self.counts.written_bytes += size

    def _read(self, key: bytes) -> bytes | None:
        try:
            # NOTE: not blocking, because the path may be a pipe
            with open(os.open(self._path(key), os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                raw = file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
        except OSError:
            return None
        data = raw[_HEADER:]
        if raw[: len(_MAGIC)] != _MAGIC or zlib.crc32(data).to_bytes(4, "little") != raw[len(_MAGIC) : _HEADER]:
            self.counts.corrupt += 1
            return None
        self.counts.read_bytes += len(raw)
        return data

    def _make_room(self, size: int) -> None:
        """Delete the least recently used files until `size` more bytes fit into the budget and leave the reserve of the
        file system free. The index row is deleted before its file. Raises OSError when the room does not suffice."""
        over = max(self.total_bytes + size - self.budget, size - self._room())
        while over > 0:
            rows = self._rows("SELECT key, bytes FROM files ORDER BY used LIMIT 64")
            if not rows:
                break
            gone = []
            for key, count in rows:
                if over <= 0:
                    break
                gone.append(key)
                over -= count
            self._forget(gone)
            self.counts.evicted += len(gone)
        if self._room() < size:
            raise OSError(errno.ENOSPC, "the free space of the disk is reserved for other programs")

    def _room(self) -> int:
        """Bytes that may be written to the file system."""
        at = os.statvfs(self.folder)
        return at.f_bavail * at.f_frsize - min(_RESERVE, at.f_blocks * at.f_frsize // 10)

    def _forget(self, keys: list[bytes]) -> None:
        with self._lock, suppress(sqlite3.Error), self._db:
            self._db.executemany("DELETE FROM files WHERE key = ?", [(key,) for key in keys])
        for key in keys:
            with suppress(OSError):
                self._path(key).unlink(missing_ok=True)

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / name

    @property
    def _index(self) -> Path:
        return self.folder / "index.sqlite"

    def _open_index(self) -> sqlite3.Connection:
        """The index. A damaged index is replaced by an empty one; `_sweep` deletes its files later."""
        for attempt in range(2):
            with open(self._index, "ab", opener=_private) as file, suppress(OSError):
                os.fchmod(file.fileno(), 0o600)  # SQLite gives its other files the same mode
            db = sqlite3.connect(self._index, timeout=30, check_same_thread=False)
            try:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
                db.executescript(_SCHEMA)
                return db
            except sqlite3.Error as error:
                db.close()
                # NOTE: a full disk or a lock is not damage, so the index stays
                if attempt or getattr(error, "sqlite_errorcode", None) not in _DAMAGED:
                    raise
                for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
                    (self.folder / name).unlink(missing_ok=True)
        raise AssertionError

    def _sweep(self) -> None:
        """Delete files that are not in the index and too old to be those of a running process."""
        known = {row[0] for row in self._rows("SELECT key FROM files")}
        limit = time.time() - _STALE_SECONDS
        for path in self.folder.glob("??/*"):
            with suppress(OSError, ValueError):
                if path.stat().st_mtime < limit and (path.suffix == ".tmp" or bytes.fromhex(path.name) not in known):
                    path.unlink()


def _end_key(base: bytes, rest: bytes) -> bytes:
    return hashlib.blake2b(b"end" + base + rest, digest_size=20).digest()


def _private(path: Path | str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
