"""Prefixes that outlive the process (report 5.2.2): page files and end files in a folder, and a SQLite index.

A file is written to a temporary name, synced, renamed, and only then entered in the index, so whatever moment the
process dies at, the index names whole files. Every file carries a checksum and is read back against it. Keys are hashes
of the model's fingerprint, the owner and all tokens up to there: a page of another model or owner cannot be found.
"""

import hashlib
import os
import sqlite3
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
from dsv4.observe import log

_MAGIC = b"dsv4\x01\x00\x00\x00"
_HEADER = len(_MAGIC) + 4
_STALE_SECONDS = 3600  # temporary files of a dead process are swept after this
_BATCH = 500
_PENDING = 1 << 28  # bytes waiting to be written before `write` waits for the disk
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    key BLOB PRIMARY KEY, base BLOB, length INTEGER NOT NULL, bytes INTEGER NOT NULL, used REAL NOT NULL);
CREATE INDEX IF NOT EXISTS ends ON files (base) WHERE base IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_use ON files (used);
"""


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


@dataclass(slots=True)
class DiskCounts:
    """What happened since the tier was opened. corrupt: files whose checksum did not fit (dropped, never used)."""

    written: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    corrupt: int = 0
    failed_writes: int = 0
    evicted: int = 0


class DiskTier:
    """A folder of cached prefixes with a byte budget, least recently used out first. Several processes may share it.

    Reading happens in the caller's thread, writing in one of its own: a slow disk does not hold up answers until
    256 MiB wait to be written. fingerprint: identifies model and storage format; keys of different fingerprints never
    meet. Raises ValueError for a budget under 1 MiB, OSError when the folder cannot be made.
    """

    def __init__(self, folder: Path, *, budget: int, fingerprint: str, page_tokens: int = PAGE_TOKENS) -> None:
        if budget < 2**20:
            raise ValueError(f"the disk budget must be at least 1 MiB, got {budget} bytes")
        self.folder, self.budget, self._page_tokens = folder, budget, page_tokens
        self._fingerprint = fingerprint
        self.counts = DiskCounts()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()  # around the index
        self._db = self._open_index()
        self._sweep()
        self._jobs: deque[_Job] = deque()
        self._pending: dict[bytes, int] = {}
        self._moved = threading.Condition()
        self._closing = False
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
        self._db.close()

    def chain(self, tokens: Sequence[int], owner: str) -> Chain:
        """The keys of these tokens."""
        key, width = token_key(tokens), self._page_tokens * 4
        root = last = hashlib.blake2b(f"{self._fingerprint}\0{owner}".encode(), digest_size=20).digest()
        pages = []
        for at in range(0, len(key) - width + 1, width):
            last = hashlib.blake2b(last + key[at : at + width], digest_size=20).digest()
            pages.append(last)
        rest = key[len(pages) * width :]
        return Chain(root, pages, hashlib.blake2b(b"end" + last + rest, digest_size=20).digest(), len(tokens))

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
        for at in range(len(bases), 0, -_BATCH):
            batch = bases[max(0, at - _BATCH) : at]
            marks = ",".join("?" * len(batch))
            query = f"SELECT length FROM files WHERE base IN ({marks}) ORDER BY length DESC"
            for (length,) in self._rows(query, batch):
                chain = self.chain(tokens[:length], owner) if length <= len(tokens) else None
                if chain is not None and self.has(chain.end):
                    return chain
        return None

    def read(self, chain: Chain) -> Content | None:
        """The files of a prefix that was found. None when one is missing or damaged: it is then forgotten."""
        parts = []
        for key in (*chain.pages, chain.end):
            data = self._read(key)
            if data is None:
                self._forget([key])
                return None
            parts.append(data)
        now = time.time()
        with self._lock, suppress(sqlite3.OperationalError), self._db:
            # the earlier pages last: they go out after what builds on them
            self._db.executemany(
                "UPDATE files SET used = ? WHERE key = ?",
                [(now - i * 1e-6, key) for i, key in enumerate((*chain.pages, chain.end))],
            )
        return Content(parts[:-1], parts[-1])

    def _known(self, keys: list[bytes]) -> set[bytes]:
        known: set[bytes] = set()
        for at in range(0, len(keys), _BATCH):
            batch = keys[at : at + _BATCH]
            marks = ",".join("?" * len(batch))
            known |= {row[0] for row in self._rows(f"SELECT key FROM files WHERE key IN ({marks})", batch)}
        return known

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _hand_over(self, job: _Job) -> None:
        with self._moved:
            if job.key in self._pending or self._closing:
                return
            self._moved.wait_for(lambda: sum(self._pending.values()) < _PENDING)
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
            self._write(job)
            with self._moved:
                del self._pending[job.key]
                self._moved.notify_all()

    def _write(self, job: _Job) -> None:
        path = self._path(job.key)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        size = len(job.data) + _HEADER
        try:
            self._make_room(size)
            path.parent.mkdir(exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(_MAGIC + zlib.crc32(job.data).to_bytes(4, "little"))
                file.write(job.data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            row = (job.key, job.base, job.length, size, time.time())
            with self._lock, self._db:
                self._db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)
        except (OSError, sqlite3.Error) as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.counts.failed_writes += 1
            log("prefix_not_written", error=f"{type(error).__name__}: {error}")
            return
        self.counts.written += 1
        self.counts.written_bytes += size

    def _read(self, key: bytes) -> bytes | None:
        try:
            raw = self._path(key).read_bytes()
        except OSError:
            return None
        data = raw[_HEADER:]
        if raw[: len(_MAGIC)] != _MAGIC or zlib.crc32(data).to_bytes(4, "little") != raw[len(_MAGIC) : _HEADER]:
            self.counts.corrupt += 1
            return None
        self.counts.read_bytes += len(raw)
        return data

    def _make_room(self, size: int) -> None:
        """Delete the least recently used files until `size` more bytes fit. The index row goes first."""
        over = self.total_bytes + size - self.budget
        while over > 0:
            rows = self._rows("SELECT key, bytes FROM files ORDER BY used LIMIT 64")
            if not rows:
                return
            gone = []
            for key, count in rows:
                if over <= 0:
                    break
                gone.append(key)
                over -= count
            self._forget(gone)
            self.counts.evicted += len(gone)

    def _forget(self, keys: list[bytes]) -> None:
        with self._lock, suppress(sqlite3.OperationalError), self._db:
            self._db.executemany("DELETE FROM files WHERE key = ?", [(key,) for key in keys])
        for key in keys:
            with suppress(OSError):
                self._path(key).unlink(missing_ok=True)

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / name

    def _open_index(self) -> sqlite3.Connection:
        """The index; a damaged one is set aside and begun anew (its files are swept later)."""
        path = self.folder / "index.sqlite"
        for attempt in range(2):
            db = sqlite3.connect(path, timeout=30, check_same_thread=False)
            try:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
                db.executescript(_SCHEMA)
                return db
            except sqlite3.DatabaseError:
                db.close()
                if attempt:
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
