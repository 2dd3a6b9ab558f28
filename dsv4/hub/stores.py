"""Where the files of a pull go: into huggingface_hub's cache, or into a folder of the user's."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Protocol

from dsv4.files import locked, rename, stamp, write_whole
from dsv4.hub.download import PullWatch, has_hash
from dsv4.hub.folders import UNFINISHED, huggingface_folder
from dsv4.hub.names import Repository
from dsv4.hub.sources import Listing, RemoteFile


class Store(Protocol):
    """folder: the model's, with every file under its name as soon as it is whole; lock: a file, see `alone`."""

    folder: Path
    lock: Path

    def has(self, file: RemoteFile, watch: PullWatch) -> bool:
        """Whether the whole file is here."""
        ...

    def partial(self, file: RemoteFile) -> Path:
        """Where a file grows. Its name depends on the content, so another version starts from nothing."""
        ...

    def keep(self, file: RemoteFile) -> None:
        """Give a file that is whole its name in `folder`."""
        ...


class HubCache:
    """huggingface_hub's cache: contents in `blobs`, named by their hash, and links to them in `snapshots/COMMIT`."""

    def __init__(self, listing: Listing, revision: str) -> None:
        self._root = huggingface_folder(Repository(listing.repo))
        self.folder = self._root / "snapshots" / listing.commit
        self.lock = self._root.parent / ".locks" / self._root.name / "dsv4-pull.lock"
        self._ref = None if revision == listing.commit else self._root / "refs" / revision
        self._commit = listing.commit

    def has(self, file: RemoteFile, watch: PullWatch) -> bool:
        blob = self._blob(file)
        if not blob.is_file() or blob.stat().st_size != file.size:
            return False
        self._link(file)
        return True

    def partial(self, file: RemoteFile) -> Path:
        blob = self._blob(file)
        return blob.with_name(f"{blob.name}.dsv4{UNFINISHED}")

    def keep(self, file: RemoteFile) -> None:
        rename(self.partial(file), self._blob(file))
        self._link(file)

    def _blob(self, file: RemoteFile) -> Path:
        return self._root / "blobs" / str(file.digest)

    def _link(self, file: RemoteFile) -> None:
        """The file's name in the snapshot, and the branch's, which says that this commit is its newest."""
        link = self.folder / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.unlink(missing_ok=True)
            with suppress(FileExistsError):  # another program has made it meanwhile
                link.symlink_to(os.path.relpath(self._blob(file), link.parent))
        if self._ref is not None and not (self._ref.is_file() and self._ref.read_text() == self._commit):
            self._ref.parent.mkdir(parents=True, exist_ok=True)
            self._ref.write_text(self._commit)


class PlainFolder:
    """A folder with the files themselves. `.dsv4-pull.json` notes which were compared with their hash, and when.

    A file of another origin is never replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.lock = folder, folder / ".dsv4-pull.lock"
        self._notes = folder / ".dsv4-pull.json"
        self._one_at_a_time = threading.Lock()

    def has(self, file: RemoteFile, watch: PullWatch) -> bool:
        path = self.folder / file.name
        if not path.exists():
            return False
        known = self._known.get(file.name)
        if known is not None and known == self._entry(file, path):
            return True
        if file.size > 1 << 30:
            watch.note(f"{path} is there: comparing it with the hub's hash")
        if has_hash(path, file, watch):
            self._note(file)
            return True
        if known is None:
            raise ValueError(f"{path} is there with other content: name another folder, or move it away")
        return False

    def partial(self, file: RemoteFile) -> Path:
        path = self.folder / file.name
        return path.with_name(f"{path.name}.{(file.digest or 'unknown')[:12]}{UNFINISHED}")

    def keep(self, file: RemoteFile) -> None:
        rename(self.partial(file), self.folder / file.name)
        self._note(file)

    def _note(self, file: RemoteFile) -> None:
        with self._one_at_a_time:
            self._known[file.name] = self._entry(file, self.folder / file.name)
            text = json.dumps(self._known, indent=1)
            write_whole(self._notes, lambda out: out.write(text.encode()))

    def _entry(self, file: RemoteFile, path: Path) -> list[object]:
        return [file.digest, *stamp(path)]

    @cached_property
    def _known(self) -> dict[str, list[object]]:
        """The notes, read at first use: inside `alone`, after a pull that was waited for has written its own."""
        try:
            notes = json.loads(self._notes.read_bytes())
        except (OSError, ValueError):  # none, or damaged: every file is compared again
            return {}
        return notes if isinstance(notes, dict) else {}


@contextmanager
def alone(store: Store, watch: PullWatch) -> Iterator[None]:
    """While entered, no other pull writes into the store; waits for one that does. The system ends the lock with the
    process."""
    store.lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(
        store.lock,
        lambda: watch.note(f"another process fetches into {store.folder}: waiting for it"),
        pause=lambda: watch.sleep(0.5),
        without=lambda error: watch.note(f"{store.lock.parent} has no locks: do not run two pulls into it at once"),
    ):
        yield
