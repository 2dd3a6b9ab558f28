"""Files that are whole or not there, sentences for disks that are full, and sizes in words. No torch."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems that have none, network shares mostly


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """While entered, errors of the system that name no file (a full disk, mostly), or an unfinished file beside, name
    this one."""
    try:
        yield
    except OSError as error:
        name = Path(error.filename).name if isinstance(error.filename, str) else ""
        beside = name.startswith(f".{path.name}.") or name == f"{path.name}.tmp"
        if error.errno is None or (error.filename is not None and not beside):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def unusable(folder: Path) -> str:
    """Why nothing can be written to a folder, which is there or would be made; "" = it can."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not there.exists():
        return f"{there} is a link that leads nowhere"
    if not there.is_dir():
        return f"{there} is a file"
    writable = os.access(there, os.W_OK | os.X_OK)
    return "" if writable else f"{there} cannot be written: no permission, or the file system is read-only"


def is_full(error: OSError) -> bool:
    """Whether room on the disk was all that lacked."""
    return error.errno in FULL


def write_whole(file: Path, write: Callable[[BinaryIO], object], *, keep: Path | None = None) -> None:
    """`file` with what `write` puts into a stream, whole and on the disk when this returns; the old one until then.

    keep: where the old one stays. On an error nothing has changed and nothing is left behind; OSError names the file.
    """
    temporary = file.with_name(file.name + ".tmp")
    try:
        with naming(file):
            with temporary.open("wb") as out:
                watched = _Watched(out)
                try:
                    write(watched)  # pyrefly: ignore  (a stream as far as writers ask)
                except RuntimeError:  # torch hides what the stream has raised
                    if watched.error is None:
                        raise
                    raise watched.error from None
                sync(out)
            if keep is not None and file.exists():
                _keep(file, keep)
            rename(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _keep(file: Path, keep: Path) -> None:
    """A second name for the old content, so that `file` is there at every moment."""
    link = keep.with_name(keep.name + ".tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(file, link)
    except OSError:  # a file system without links: for a moment only `keep` is there
        os.replace(file, keep)
    else:
        os.replace(link, keep)


def sync(stream: BinaryIO) -> None:
    """Return when what was written to the stream is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_path(path: Path) -> None:
    """Return when a file's content, or a folder's names, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def rename(source: Path, target: Path) -> None:
    """Give a file that is on the disk its final name, in place of what has it, and return when the name is there too.
    A folder takes only a name that is free."""
    os.replace(source, target)
    sync_path(target.parent)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `target` when the block ends; until then the old one stays. On an
    error, also one of the last step, the old one is there and nothing is left of the new one. A process that is killed
    between the two renames of that step leaves the old one as `target.old`; the next call puts it back."""
    staging, old = target.with_name(f"{target.name}.new"), target.with_name(f"{target.name}.old")
    if old.exists() and not target.exists():
        rename(old, target)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            rename(target, old)
        try:
            rename(staging, target)
        except OSError:
            if old.exists():
                rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def locked(
    file: Path,
    wait: Callable[[], object] = lambda: None,
    *,
    pause: Callable[[], object] | None = None,
    without: Callable[[OSError], object] = lambda error: None,
) -> Iterator[None]:
    """While entered, no other process has the lock of `file`, which stays when it is left: whoever removes it could
    remove the next owner's. The system takes the lock from a process that ends, however it ends.

    wait: called before it waits for another owner, and may raise instead. pause: called between two tries, for a wait
    that can be ended. without: called on a file system that has no locks, where nobody is kept out; may raise.
    """
    with file.open("a") as opened:
        try:
            _take(opened, wait, pause)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            without(error)
        yield


def _take(opened: IO[str], wait: Callable[[], object], pause: Callable[[], object] | None) -> None:
    with suppress(BlockingIOError):
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    wait()
    while pause is not None:
        pause()
        with suppress(BlockingIOError):
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
    fcntl.flock(opened, fcntl.LOCK_EX)


def stamp(file: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds: what tells that a file is still the one it was."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


class _Watched:
    """A stream that remembers why writing to it failed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._stream.flush()


def size_text(count: float) -> str:
    """Bytes for a sentence: 1.50 GiB, or MiB below one."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def counted(number: int, what: str) -> str:
    """A number of things for a sentence: 1 node, 2 nodes."""
    return f"{number} {what}{'' if number == 1 else 's'}"
