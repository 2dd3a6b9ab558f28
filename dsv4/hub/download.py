"""One file from a hub to the disk: continued where it stopped, tried again while the network comes and goes, and
compared with the hub's hash.
"""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from dsv4.files import naming, sync
from dsv4.hub.sources import CHUNK, Hub, HubError, Listing, RemoteFile

Value = TypeVar("Value")


class Stopped(Exception):
    """The pull was told to stop."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a pull waits for a hub that fails. waits: seconds before each further try; a try that has brought new
    bytes starts again at the first. most: the longest wait that a hub may ask for itself."""

    waits: tuple[float, ...] = (1, 2, 5, 10, 30, 60, 60, 60, 60)
    most: float = 300


class PullWatch:
    """What all downloads of a pull share: bytes that are here, a stop, and what the user is told. Threads may call it.

    arrived: called with a number of bytes, negative where bytes count no longer; note: called with a sentence.
    """

    def __init__(self, arrived: Callable[[int], None], note: Callable[[str], None]) -> None:
        self.arrived, self.note = arrived, note
        self._stop = threading.Event()

    def stop(self) -> None:
        """Let every download end at its next chunk."""
        self._stop.set()

    def check(self) -> None:
        """Raise Stopped after `stop`."""
        if self._stop.is_set():
            raise Stopped

    def sleep(self, duration: float) -> None:
        """Wait, at most until `stop`. Raises Stopped then."""
        if self._stop.wait(duration):
            raise Stopped


def insist(
    attempt: Callable[[], Value], patience: Patience, watch: PullWatch, done: Callable[[], int] = lambda: 0
) -> Value:
    """The value of `attempt`, called again after errors that may pass. Raises the last HubError.

    done: bytes so far; while they grow, patience does not end.
    """
    waits, before = iter(patience.waits), done()
    while True:
        watch.check()
        try:
            return attempt()
        except HubError as error:
            if done() > before:
                waits, before = iter(patience.waits), done()
            wait = next(waits, None)
            if wait is None or not error.again:
                raise
            wait = max(wait, min(error.wait or 0, patience.most))
            watch.note(f"{error}; next try in {wait:.0f} s")
        watch.sleep(wait)


@dataclass(frozen=True, slots=True)
class Download:
    """A file that becomes whole in `partial`, which keeps what has arrived when the process ends."""

    source: Hub
    listing: Listing
    file: RemoteFile
    partial: Path
    watch: PullWatch
    patience: Patience

    def run(self) -> None:
        """Fetch what is missing. Afterwards `partial` is on the disk, with the size and the hash that the hub gives.

        Raises HubError, OSError naming the file (a full disk), or Stopped.
        """
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        if not self._is_right():
            self.watch.note(f"{self.file.name}: what arrived has not the hash that the hub gives; it is fetched again")
            if not self._is_right():
                raise HubError(
                    f"{self.file.name}: what arrived has not the hash that the hub gives, twice, and was removed: run "
                    "the command again later, or with another hub (HF_ENDPOINT, --source)"
                )

    def _is_right(self) -> bool:
        """Fetch what is missing; whether the hash is right. A wrong file is removed."""
        with naming(self.partial), self.partial.open("a+b") as out:
            growing = _Growing(out, self.file, self.watch)
            if growing.done < self.file.size:
                insist(lambda: self._receive(growing), self.patience, self.watch, lambda: growing.done)
            if growing.is_right():
                sync(out)
                return True
            growing.restart()
        self.partial.unlink()
        return False

    def _receive(self, growing: "_Growing") -> None:
        """One request for all that is missing."""
        name = self.file.name
        with self.source.open(self.listing, self.file, growing.done) as body:
            if body.start != growing.done:
                growing.restart()  # the hub sends the whole file
            if body.start != growing.done:
                raise HubError(f"{name}: the hub answers with other bytes than those asked for", again=True)
            for chunk in body.chunks:
                self.watch.check()
                growing.append(chunk)
                if growing.done > self.file.size:
                    growing.restart()
                    raise HubError(f"{name}: the hub sends more than the {self.file.size:,} bytes that it lists")
        if growing.done < self.file.size:
            raise HubError(f"{name}: the connection ended at byte {growing.done:,}", again=True)


class _Growing:
    """A file that grows, and the hash of what it holds."""

    def __init__(self, out: BinaryIO, file: RemoteFile, watch: PullWatch) -> None:
        self._out, self._file, self._watch = out, file, watch
        self.done, self._hash = 0, _new_hash(file)
        out.seek(0)
        while chunk := out.read(CHUNK):  # what an earlier process has left
            watch.check()
            self._count(chunk)
        if self.done > file.size:
            self.restart()

    def append(self, chunk: bytes) -> None:
        self._out.write(chunk)
        self._count(chunk)

    def restart(self) -> None:
        """Forget everything."""
        self._out.truncate(0)
        self._watch.arrived(-self.done)
        self.done, self._hash = 0, _new_hash(self._file)

    def is_right(self) -> bool:
        """Whether the file holds what the hub has, as far as the hub says what it has."""
        return self._file.digest in (None, self._hash.hexdigest())

    def _count(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.done += len(chunk)
        self._watch.arrived(len(chunk))


def _new_hash(file: RemoteFile) -> "hashlib._Hash":
    if file.hashed == "sha256":
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def has_hash(path: Path, file: RemoteFile, watch: PullWatch) -> bool:
    """Whether a file on the disk is the hub's: its size, and its hash where the hub gives one."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = _new_hash(file)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            watch.check()
            digest.update(chunk)
    return file.digest in (None, digest.hexdigest())
