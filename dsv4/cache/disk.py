"""Prefixes that outlive the process (report 5.2.2): page files and end files in a folder, and a SQLite index.

A file is written to a temporary name, synced, renamed, and only then entered in the index, so whatever moment the
process dies at, the index names whole files. Every file carries a checksum and is read back against it. Keys are hashes
of the model's fingerprint, the owner and all tokens up to there: a page of another model or owner cannot be found.
Only this user may read folder, files and index: they hold what people have said.
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
_STALE_SECONDS = 3600  # temporary files of a dead process are swept after this
_BATCH = 500
_PENDING = 1 << 28  # bytes waiting to be written before `put_page` and `put_end` wait for the disk ...
_PATIENCE = 2.0  # ... at most so many seconds; then records are dropped until the disk has caught up
_RESERVE = 2**30  # bytes of the file system left to others, at most a tenth of it
_BUSY_SECONDS = 0.5  # how long a reader waits for the index; writers have a thread of their own and wait longer
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    key BLOB PRIMARY KEY, base BLOB, length INTEGER NOT NULL, bytes INTEGER NOT NULL, used REAL NOT NULL);
DROP INDEX IF EXISTS ends;
CREATE INDEX IF NOT EXISTS ends_by_length ON files (base, length) WHERE base IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_use ON files (used);
"""
# the distinct lengths of the ends behind one page, longest first: one look into the index for each, however many ends
_LENGTHS = """
WITH RECURSIVE known(length) AS (
    SELECT MAX(length) FROM files WHERE base = ?1 AND length <= ?2
    UNION ALL
    SELECT (SELECT MAX(length) FROM files WHERE base = ?1 AND length < known.length) FROM known
    WHERE known.length IS NOT NULL)
SELECT length FROM known WHERE length IS NOT NULL
"""


class DiskBusyError(RuntimeError):
    """Another process holds the index just now; nothing is wrong with it."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The keys of a token sequence: one per full page, and the end (the rest of the tokens and the snapshot)."""

    root: bytes
    pages: list[bytes]
    end: bytes
    length: int

    @property
    def base(self) -> bytes:
        """The key that the end follows."""
        return self.pages[-1] if self.pages else self.root


@dataclass(frozen=True, slots=True)
class Content:
    """What is stored of a prefix: full pages, and the end."""

    pages: list[bytes]
    end: bytes


@dataclass(frozen=True, slots=True)
class _Job:
    key: bytes
    base: bytes | None  # of an end: the key before it
    length: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _Touch:
    """These files were used at that time."""

    keys: tuple[bytes, ...]
    when: float


@dataclass(slots=True)
class DiskCounts:
    """What happened since the tier was opened. corrupt: files whose checksum did not fit (dropped, never used).
    dropped: records not handed over because the disk was too slow."""

    written: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    corrupt: int = 0
    failed_writes: int = 0
    dropped: int = 0
    evicted: int = 0


class DiskTier:
    """A folder of cached prefixes with a byte budget, least recently used out first. Several processes may share it.

    Reading happens in the caller's thread, writing in one of its own: a slow disk holds up answers for two seconds at
    most, once 256 MiB wait to be written. A tenth of the file system (at most 1 GiB) is left to others: what is kept
    here gives way to that. fingerprint: identifies model and storage format; keys of different fingerprints never meet.

    Raises ValueError for a budget under 1 MiB and for a folder that cannot be used. What later goes wrong with writing
    is counted, logged once, and nothing else; reading raises what the file system and SQLite raise, DiskBusyError where
    it may be tried again.
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
        self._jobs: deque[_Job | _Touch] = deque()
        self._pending: dict[bytes, int] = {}
        self._moved = threading.Condition()
        self._closing = self._behind = self._unwritable = False
        self._thread = threading.Thread(target=self._write_jobs, name="dsv4-disk", daemon=True)
        self._thread.start()

    @property
    def total_bytes(self) -> int:
        """Bytes of all files in the index."""
        return self._rows("SELECT COALESCE(SUM(bytes), 0) FROM files")[0][0]

    def flush(self) -> None:
        """Wait until everything handed over is written."""
        with self._moved:
            self._moved.wait_for(lambda: not self._pending)

    def close(self) -> None:
        """Write what is left, then let go of the folder."""
        with self._moved:
            self._closing = True
            self._moved.notify_all()
        self._thread.join()
        for connection in (self._reader, self._db):
            with suppress(sqlite3.Error):
                connection.close()

    def chain(self, tokens: Sequence[int], owner: str) -> Chain:
        """The keys of these tokens."""
        key, width = token_key(tokens), self._page_tokens * 4
        root = last = hashlib.blake2b(
            f"{self._fingerprint}\0{owner}".encode("utf-8", "surrogatepass"), digest_size=20
        ).digest()
        pages = []
        for at in range(0, len(key) - width + 1, width):
            last = hashlib.blake2b(last + key[at : at + width], digest_size=20).digest()
            pages.append(last)
        rest = key[len(pages) * width :]
        return Chain(root, pages, _end_key(last, rest), len(tokens))

    def has(self, key: bytes) -> bool:
        """Whether this file is stored or about to be."""
        return key in self._pending or bool(self._rows("SELECT 1 FROM files WHERE key = ?", (key,)))

    def missing(self, keys: list[bytes]) -> set[bytes]:
        """Which of these files are neither stored nor about to be."""
        # NOTE: pending first: a file that is written meanwhile is then found in the index
        idle = [key for key in keys if key not in self._pending]
        return set(idle) - self._known(idle)

    def put_page(self, key: bytes, data: bytes) -> None:
        """Store one full page, soon. When it cannot be written (a full disk) that is counted and nothing else."""
        self._hand_over(_Job(key, None, 0, data))

    def put_end(self, chain: Chain, data: bytes) -> None:
        """Store the end of a prefix, after its pages; with it the prefix can be found."""
        self._hand_over(_Job(chain.end, chain.base, chain.length, data))

    def find(self, tokens: Sequence[int], owner: str) -> Chain | None:
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
                    return Chain(full.root, full.pages[: length // self._page_tokens], end, length)
        return None

    def read(self, chain: Chain) -> Content | None:
        """The files of a prefix that was found. None when one is missing or damaged: it is then forgotten."""
        parts = []
        for key in (*chain.pages, chain.end):
            data = self._read(key)
            if data is None:
                # NOTE: not by the writer's connection, which may wait long for other processes
                with self._read_lock, suppress(sqlite3.Error), self._reader:
                    self._reader.execute("DELETE FROM files WHERE key = ?", (key,))
                with suppress(OSError):
                    self._path(key).unlink(missing_ok=True)
                return None
            parts.append(data)
        with self._moved:
            self._jobs.append(_Touch((*chain.pages, chain.end), time.time()))
            self._moved.notify_all()
        return Content(parts[:-1], parts[-1])

    def _with_ends(self, bases: list[bytes]) -> list[bytes]:
        """Those behind which an end is stored, in their order."""
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

    def _hand_over(self, job: _Job) -> None:
        with self._moved:
            if job.key in self._pending or self._closing:
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
            self._pending[job.key] = len(job.data)
            self._jobs.append(job)
            self._moved.notify_all()

    def _write_jobs(self) -> None:
        while True:
            with self._moved:
                self._moved.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            try:
                self._touch(job) if isinstance(job, _Touch) else self._write(job)
            except Exception as error:  # the border of the thread: without it nothing would be written any more
                self._not_written(error)
            with self._moved:
                if isinstance(job, _Job):
                    del self._pending[job.key]
                self._moved.notify_all()

    def _touch(self, job: _Touch) -> None:
        with self._lock, suppress(sqlite3.Error), self._db:
            # the earlier pages last: they go out after what builds on them
            self._db.executemany(
                "UPDATE files SET used = ? WHERE key = ?",
                [(job.when - i * 1e-6, key) for i, key in enumerate(job.keys)],
            )

    def _not_written(self, error: Exception) -> None:
        """Count it; the first of a series is logged."""
        self.counts.failed_writes += 1
        if not self._unwritable:
            log("prefix_not_written", folder=str(self.folder), error=f"{type(error).__name__}: {error}")
        self._unwritable = True

    def _write(self, job: _Job) -> None:
        path = self._path(job.key)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        size = len(job.data) + _HEADER
        try:
            self._make_room(size)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            with open(temporary, "wb", opener=_private) as file:
                file.write(_MAGIC + zlib.crc32(job.data).to_bytes(4, "little"))
                file.write(job.data)
                sync(file)
            rename(temporary, path)
            row = (job.key, job.base, job.length, size, time.time())
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
            # NOTE: not blocking: somebody may have put a pipe there
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
        """Delete the least recently used files until `size` more bytes fit, into the budget and beside the reserve of
        the file system. The index row goes first. Raises OSError when there is nothing to delete and no room."""
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
            raise OSError(errno.ENOSPC, "what is left of the disk is left to others")

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
        """The index; a damaged one is begun anew (its files are swept later)."""
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
                # NOTE: a full disk or a lock is not damage: the index stays
                if attempt or getattr(error, "sqlite_errorcode", None) not in _DAMAGED:
                    raise
                for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
                    (self.folder / name).unlink(missing_ok=True)
        raise AssertionError

    def _sweep(self) -> None:
        """Remove files the index does not know, when they are old enough not to be another process's work."""
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
