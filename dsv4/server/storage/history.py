"""Conversations of the chat page, kept on the server: one file for each, in one folder for each key.

The page decides what a conversation holds; the server reads only its title. A file has two lines of JSON, the entry of
the list and the document, so that a list reads the first lines alone. A key has one of a few threads, in which its
calls run one after another, so that a long search holds up few other keys. Several servers may keep one folder: a
write holds the lock of the key's folder, which the system ends with the process.
"""

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dsv4.files import locked, write_whole
from dsv4.observe import log
from dsv4.server.storage.folders import check_room, disk_errors, key_digest, private_folder, storage_full
from dsv4.server.wire.errors import ApiError, invalid, show
from dsv4.server.wire.json import to_json

ID = re.compile(r"[a-z0-9_-]{1,64}")
MOST_TITLE = 512
# bounds of one conversation, and of all conversations of a key
MOST_DOCUMENT_BYTES = 16 << 20
MOST_CONVERSATIONS = 2_000
MOST_BYTES = 512 << 20
WHAT = "history"
LOCK = ".lock"
THREADS = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One conversation in the list. updated: milliseconds since 1970; bytes: of its document."""

    id: str
    title: str
    updated: int
    bytes: int


class History:
    """The conversations in `folder`. Every method takes the name of the client's key, which sees only its own.

    All raise ApiError: 400 for an id or a document in a wrong form, 404 for an unknown id, 507 where a limit is reached
    or the disk is full. Nothing of the old conversation is lost then. Raises OSError if the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = private_folder(folder)
        for kept in folder.iterdir():
            if kept.is_dir():
                with locked(kept / LOCK):
                    for unfinished in kept.glob("*.tmp"):
                        unfinished.unlink()
        self._threads = [ThreadPoolExecutor(1, f"dsv4-history-{number}") for number in range(THREADS)]

    async def entries(self, key: str, search: str = "") -> list[Entry]:
        """All conversations, the newest first. search: only those that hold this text, in either case."""
        return await self._run(key, lambda: self._entries(key, search))

    async def get(self, key: str, id: str) -> dict[str, Any]:
        """The document as it was put, with the fields of its entry."""
        file = self._file(key, id)
        return await self._run(key, lambda: _read(file))

    async def put(self, key: str, id: str, document: object, unchanged_since: int | None = None) -> Entry:
        """Keep a document, in place of an earlier one. unchanged_since: `updated` of the one that the client knows;
        another one raises ApiError 412, so that two pages do not overwrite each other's messages."""
        file = self._file(key, id)
        if not isinstance(document, dict):
            raise invalid("body", f"expected a JSON object with a title, got {show(document)}")
        title = document.get("title")
        if not isinstance(title, str) or len(title) > MOST_TITLE:
            raise invalid("title", f"must be a string of at most {MOST_TITLE} characters, got {show(title)}")

        def put() -> Entry:
            with locked(private_folder(file.parent) / LOCK):
                return self._put(file, title, to_json(document), unchanged_since)

        return await self._run(key, put)

    async def delete(self, key: str, id: str) -> None:
        """Forget a conversation."""
        file = self._file(key, id)

        def remove() -> None:
            try:
                with locked(file.parent / LOCK):
                    file.unlink()
            except FileNotFoundError:
                raise _unknown(id) from None

        await self._run(key, remove)

    def close(self) -> None:
        """Finish the writes that were begun."""
        for thread in self._threads:
            thread.shutdown()

    async def _run(self, key: str, work: Callable[[], T]) -> T:
        with disk_errors(WHAT):
            return await asyncio.get_running_loop().run_in_executor(self._thread(key), work)

    def _thread(self, key: str) -> ThreadPoolExecutor:
        return self._threads[int(key_digest(key), 16) % THREADS]

    def _file(self, key: str, id: str) -> Path:
        if not ID.fullmatch(id):
            raise invalid("id", f"must be 1 to 64 of the characters a-z, 0-9, _ and -, got {show(id)}")
        return self.folder / key_digest(key) / f"{id}.json"

    def _entries(self, key: str, search: str) -> list[Entry]:
        needle = to_json(search)[1:-1].decode().casefold()
        found: list[Entry] = []
        for file in (self.folder / key_digest(key)).glob("*.json"):
            with file.open("rb") as stream:
                try:
                    entry = msgspec.json.decode(stream.readline(), type=Entry)
                except msgspec.DecodeError as error:  # changed by another program; the others are still of use
                    log("history_unreadable", file=str(file), error=str(error))
                    continue
                if not search or needle in stream.read().decode(errors="replace").casefold():
                    found.append(entry)
        return sorted(found, key=lambda entry: entry.updated, reverse=True)

    def _put(self, file: Path, title: str, body: bytes, unchanged_since: int | None) -> Entry:
        if len(body) > MOST_DOCUMENT_BYTES:
            raise ApiError(413, f"{WHAT}: a conversation may have {MOST_DOCUMENT_BYTES:,} bytes, got {len(body):,}")
        old = _updated(file)
        if unchanged_since is not None and unchanged_since != old:
            raise ApiError(412, f"{WHAT}: the conversation was changed since; read it again", code="changed")
        others = [other.stat().st_size for other in file.parent.glob("*.json") if other != file]
        if len(others) >= MOST_CONVERSATIONS or sum(others) + len(body) > MOST_BYTES:
            raise storage_full(
                f"{WHAT}: at most {MOST_CONVERSATIONS:,} conversations and {MOST_BYTES >> 20} MiB are kept for a key; "
                "delete some first",
                "history_full",
            )
        check_room(file.parent, WHAT, len(body))
        # later than the last one, also when the clock was set back or two writes come in one millisecond
        updated = max(time.time_ns() // 1_000_000, old + 1)
        entry = Entry(file.stem, title, updated, len(body))
        write_whole(file, lambda stream: stream.write(to_json(asdict(entry)) + b"\n" + body))
        return entry


def _updated(file: Path) -> int:
    """When the conversation in `file` was put, 0 for none."""
    try:
        with file.open("rb") as stream:
            return msgspec.json.decode(stream.readline(), type=Entry).updated
    except (FileNotFoundError, msgspec.DecodeError):
        return 0


def _read(file: Path) -> dict[str, Any]:
    try:
        head, _, body = file.read_bytes().partition(b"\n")
        return {**msgspec.json.decode(body), **msgspec.json.decode(head)}
    except FileNotFoundError:
        raise _unknown(file.stem) from None
    except msgspec.DecodeError as error:  # changed by another program
        log("history_unreadable", file=str(file), error=str(error))
        raise ApiError(500, f"{WHAT}: this conversation cannot be read", code="storage_failed") from error


def _unknown(id: str) -> ApiError:
    return ApiError(404, f"{WHAT}: no conversation {show(id)}", param="id", code="not_found")
